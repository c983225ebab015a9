# Regular expressions over a generated log: search, groups, substitution.
import re

seed, lines = 7, []
for n in range(6000):
    seed = seed * 1103515245 + 12345 & 0x7fffffff
    lines.append("%02d:%02d:%02d host%d prog[%d]: %s from 10.%d.%d.%d port %d" % (
        n // 3600, n // 60 % 60, n % 60, seed % 9, seed >> 8 & 4095, ("accepted", "refused", "time-out")[seed >> 4 & 1],
        seed & 255, seed >> 8 & 255, seed >> 16 & 255, seed >> 3 & 65535))
text = "\n".join(lines)
found = re.findall(r"^(\S+) (host[1-5]) (\w+)\[(\d+)\]: (\w+) from ((?:\d{1,3}\.){3}\d{1,3})", text, re.M)
changed, count = re.subn(r"\b(\d+)\.(\d+)\.(\d+)\.(\d+)\b", lambda m: ".".join(reversed(m.groups())), text)
odd = sum(1 for m in re.finditer(r"(?i)REFUSED.*?port (\d*[13579])$", text, re.M))
print(len(found), count, odd, len(re.split(r"[\s:\[\]]+", changed)))
