# Five bodies in floating point: attribute-free arithmetic in lists.
def advance(bodies, pairs, dt, steps):
    for _ in range(steps):
        for a, b in pairs:
            (x1, y1, z1), v1, m1 = a
            (x2, y2, z2), v2, m2 = b
            dx, dy, dz = x1 - x2, y1 - y2, z1 - z2
            force = dt * (dx * dx + dy * dy + dz * dz) ** -1.5
            v1[0] -= dx * m2 * force
            v1[1] -= dy * m2 * force
            v1[2] -= dz * m2 * force
            v2[0] += dx * m1 * force
            v2[1] += dy * m1 * force
            v2[2] += dz * m1 * force
        for at, v, _ in bodies:
            at[0] += dt * v[0]
            at[1] += dt * v[1]
            at[2] += dt * v[2]


bodies = [([i * 1.5, -i * 0.7, i * 0.2], [0.0, 0.3 * i, 0.01 * i], 0.5 / (i + 1)) for i in range(5)]
advance(bodies, [(a, b) for n, a in enumerate(bodies) for b in bodies[n + 1:]], 0.001, 6000)
# Not all digits: pow() of the C library may round its last one otherwise where it has other instructions.
print(["%.9f" % x for at, _, _ in bodies for x in at])
