# Dictionaries, sets, objects and calls: built, changed, thrown away.
class Account:
    __slots__ = ("owner", "sum")

    def __init__(self, owner):
        self.owner, self.sum = owner, 0

    def add(self, amount):
        self.sum += amount
        return self


accounts, seen = {}, set()
for n in range(150000):
    key = n * 2654435761 % 20011
    account = accounts.get(key)
    if account is None:
        account = accounts[key] = Account(str(key))
    seen.add(account.add(n).sum % 1000)
    if n % 5 == 0:
        accounts.pop((key * 3) % 20011, None)
by_length = {}
for account in accounts.values():
    by_length.setdefault(len(account.owner), []).append(account.sum)
print(len(accounts), len(seen), sorted((k, sum(v)) for k, v in by_length.items()))
