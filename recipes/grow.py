"""Makes larger.smi, larger-2.smi and smaller.smi: more molecules to train on.

    python recipes/grow.py recipes/molecules.csv > recipes/larger.smi
    python recipes/grow.py recipes/molecules.csv --count 848 | tail -348 > recipes/larger-2.smi
    python recipes/grow.py recipes/molecules.csv --atoms 5 9 > recipes/smaller.smi

molecules.csv has columns smiles and split. In a training molecule one hydrogen is replaced by a
group; what has the right number of atoms is kept, a few per parent, so that every kind of bond gets
new neighbours. The molecules of molecules.csv, and with them those that measure transfer, are never
among these.
"""

from __future__ import annotations

import argparse
import csv
import random

from rdkit import Chem, RDLogger

GROUPS = (
    "C",
    "N",
    "O",
    "C=O",
    "C#N",
    "C#C",
    "C=C",
    "C=N",
    "CO",
    "CN",
    "OC",
    "NC",
    "CC",
    "C(=O)O",
    "C(N)=O",
)


def grown(parent: str, sizes: range) -> list[str]:
    """Canonical SMILES of these numbers of atoms that differ from the parent in one group."""
    molecule = Chem.AddHs(Chem.MolFromSmiles(parent))
    found = set()
    for hydrogen in (a for a in molecule.GetAtoms() if a.GetSymbol() == "H"):
        (heavy,) = hydrogen.GetNeighbors()
        for group in GROUPS:
            pair = Chem.RWMol(Chem.CombineMols(molecule, Chem.AddHs(Chem.MolFromSmiles(group))))
            first = molecule.GetNumAtoms()  # the group's first atom gives up a hydrogen as well
            spare = next(
                a.GetIdx()
                for a in pair.GetAtomWithIdx(first).GetNeighbors()
                if a.GetSymbol() == "H"
            )
            pair.AddBond(heavy.GetIdx(), first, Chem.BondType.SINGLE)
            for index in sorted((hydrogen.GetIdx(), spare), reverse=True):
                pair.RemoveAtom(index)
            whole = pair.GetMol()
            if Chem.SanitizeMol(whole, catchErrors=True) or whole.GetNumAtoms() not in sizes:
                continue
            found.add(Chem.MolToSmiles(Chem.RemoveHs(whole)))
    return sorted(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("molecules")
    parser.add_argument("--atoms", type=int, nargs=2, default=(10, 12), metavar=("LEAST", "MOST"))
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    RDLogger.DisableLog("rdApp.*")
    with open(arguments.molecules, newline="") as file:
        molecules = list(csv.DictReader(file))
    known = {Chem.CanonSmiles(row["smiles"]) for row in molecules}
    parents = [row["smiles"] for row in molecules if row["split"] == "train"]
    rng = random.Random(arguments.seed)
    sizes = range(arguments.atoms[0], arguments.atoms[1] + 1)
    of_parent = {p: [s for s in grown(p, sizes) if s not in known] for p in parents}
    chosen: dict[str, None] = {}
    while len(chosen) < arguments.count and any(of_parent.values()):
        for parent in rng.sample(parents, len(parents)):
            some = of_parent[parent]
            if some:
                chosen[some.pop(rng.randrange(len(some)))] = None
    print("\n".join(list(chosen)[: arguments.count]))


if __name__ == "__main__":
    main()
