"""Rank the wines of the UCI data set by their FALCON distance to the first three."""

import csv
import os
import sys

from halcon import search

here = os.path.dirname(os.path.abspath(__file__))
path = sys.argv[1] if len(sys.argv) > 1 else os.path.join(here, "wine.csv")
with open(path, newline="") as lines:
    wines = [
        ["wine%d" % number, 1, [float(value) for value in row]]
        for number, row in enumerate(csv.reader(lines), start=1)
    ]

names, scores = search.query(wines[:3], wines, metric="cityblock", normalization="standard")
if not scores:
    sys.exit("halcon found nothing: it needs NumPy 1.19 or older")

print("%7s  %-10s  %s" % ("Ranking", "Identifier", "Score"))
for ranking, (name, score) in enumerate(list(zip(names, scores))[:20]):
    print("%7d  %-10s  %.6g" % (ranking, name, float(score)))
