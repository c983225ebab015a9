# The most flips of a pancake stack of eight: lists, slices, integers.
from itertools import permutations

most = total = 0
for number, stack in enumerate(permutations(range(8))):
    flips = 0
    stack = list(stack)
    while top := stack[0]:
        stack[:top + 1] = stack[top::-1]
        flips += 1
    most = max(most, flips)
    total += flips if number % 2 else -flips
print(most, total)
