# Writes and reads nested data as JSON, with the C and with the Python implementation.
import json
import json.encoder

data = [{"id": n, "name": "item %d ä" % n, "tags": ["x%d" % k for k in range(n % 7)], "price": n / 8, "on": n % 2 == 0, "of": None}
        for n in range(2000)]
size = 0
for _ in range(6):
    text = json.dumps(data)
    assert json.loads(text) == data
    size += len(text)
size += len(json.dumps(data, indent=1, sort_keys=True))
print(size)
