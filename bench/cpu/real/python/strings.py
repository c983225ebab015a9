# Text: joining, splitting, replacing, formatting, counting, encoding.
words = ["".join(chr(97 + (n * k * 7 + k) % 26) for k in range(1, n % 11 + 2)) for n in range(6000)]
total = 0
for n in range(12):
    text = " ".join(words)
    total += text.count("ab") + len(text.replace("a", "äö").encode()) + text.rfind("zz")
    parts = sorted(text.upper().split(), key=lambda w: (len(w), w))
    total += sum(len(f"{w:>12}|{len(w):04x}") for w in parts) + len("".join(w.title() for w in parts).swapcase())
print(total)
