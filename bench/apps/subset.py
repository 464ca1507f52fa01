"""What an interpreter does all day, in the manner of pyperformance: records for hx-bench.

usage: subset.py MILLISECONDS, the time for each
"""
import json
import re
import sys
import time

BUDGET_NS = int(sys.argv[1]) * 1_000_000


def nbody(steps=300):
    """Five bodies, by floating point numbers in lists."""
    bodies = [[i * 1.1, i * 0.7, i * 0.3, 0.1 * i, 0.05, -0.02 * i, 1.0 / (i + 1)] for i in range(5)]
    for _ in range(steps):
        for i, a in enumerate(bodies):
            for b in bodies[i + 1:]:
                dx, dy, dz = a[0] - b[0], a[1] - b[1], a[2] - b[2]
                pull = 0.001 / (dx * dx + dy * dy + dz * dz + 0.01) ** 1.5
                for at, d in ((3, dx), (4, dy), (5, dz)):
                    a[at] -= d * b[6] * pull
                    b[at] += d * a[6] * pull
        for body in bodies:
            for at in range(3):
                body[at] += 0.001 * body[at + 3]


def fannkuch(n=6):
    """Turns over beginnings of all permutations."""
    from itertools import permutations
    most = 0
    for order in permutations(range(n)):
        order, flips = list(order), 0
        while order[0]:
            order[:order[0] + 1] = order[order[0]::-1]
            flips += 1
        most = max(most, flips)
    assert most == 10


def json_both_ways(value=[{"name": f"n{i}", "list": list(range(20)), "real": i / 7} for i in range(40)]):
    assert json.loads(json.dumps(value)) == value


def regular_expressions(text="The quick brown fox, 1234 jumps; over 56 lazy dogs. " * 60):
    assert len(re.findall(r"\b[a-z]+\b|\d+", text)) == 9 * 60


def objects(count=2000):
    """Calls of methods, dictionaries, strings."""
    class Point:
        def __init__(self, x, y):
            self.x, self.y = x, y

        def moved(self, dx):
            return Point(self.x + dx, self.y)

    seen = {}
    for i in range(count):
        point = Point(i, -i).moved(3)
        seen[f"{point.x}:{point.y}"] = point
    assert len(seen) == count


def measure(body):
    body()
    times, start = [], time.perf_counter_ns()
    while not times or time.perf_counter_ns() - start < BUDGET_NS:
        begin = time.perf_counter_ns()
        body()
        times.append(time.perf_counter_ns() - begin)
    times.sort()
    print(f"@ python {body.__name__}: ms {times[len(times) // 2] / 1e6:.4f}", flush=True)


for body in (nbody, fannkuch, json_both_ways, regular_expressions, objects):
    measure(body)
print("@ end")
