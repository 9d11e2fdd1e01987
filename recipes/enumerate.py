"""Makes every.smi: all molecules of few atoms of carbon, nitrogen and oxygen, and some of one more.

    python recipes/enumerate.py recipes/molecules.csv recipes/*.smi > recipes/every.smi

From methane, ammonia and water on: a hydrogen is replaced by one more atom, a bond made one order
higher, or a ring closed. All that rdkit has a name for with up to four atoms besides hydrogen, and
some with five; less those that would not last (peroxides, chains of nitrogen, strained rings) and
the molecules of the files named.
"""

from __future__ import annotations

import argparse
import random
from itertools import combinations
from pathlib import Path

from rdkit import Chem, RDLogger

ELEMENTS = (6, 7, 8)
SIZES = range(3, 15)  # atoms, hydrogen too
# Three- and four-membered rings keep to single bonds and to at most one atom that is not carbon; no
# atom is part of two rings.
SHORT_LIVED = [
    Chem.MolFromSmarts(pattern)
    for pattern in (
        "[#8]~[#8]",
        "[#7]~[#7]~[#7]",
        "[#7]~[#7]~[#8]",
        "[#8]~[#7]~[#8]",
        "[NX3,NX2]~[#8]~[#7]",
        "[OH]C[OH,NH2,NH1]",
        "[#8]~[CX4]~[#8]",
        "*=*=*=*",
        "[r3,r4]=,#,:*",
        "[r3,r4;!#6]~[r3,r4;!#6]",
        "[x3,x4]",
        "[NH]=[#7]",
        "[r5,r6,r7]=*=*",
        "[r5,r6,r7]#*",
    )
]


def one_step_larger(molecule: Chem.Mol) -> set[str]:
    """Canonical SMILES of what one more atom, one bond order more or one more ring makes of it."""
    found = set()

    def keep(changed: Chem.RWMol) -> None:
        whole = changed.GetMol()
        if not Chem.SanitizeMol(whole, catchErrors=True):
            found.add(Chem.MolToSmiles(whole))

    free = [atom.GetIdx() for atom in molecule.GetAtoms() if atom.GetTotalNumHs()]
    for atom in free:
        for element in ELEMENTS:
            grown = Chem.RWMol(molecule)
            grown.AddBond(atom, grown.AddAtom(Chem.Atom(element)), Chem.BondType.SINGLE)
            keep(grown)
    higher = {
        Chem.BondType.SINGLE: Chem.BondType.DOUBLE,
        Chem.BondType.DOUBLE: Chem.BondType.TRIPLE,
    }
    kekule = Chem.Mol(molecule)
    Chem.Kekulize(kekule, clearAromaticFlags=True)
    for a, b in combinations(free, 2):
        changed = Chem.RWMol(kekule)
        bond = changed.GetBondBetweenAtoms(a, b)
        if bond is None:
            changed.AddBond(a, b, Chem.BondType.SINGLE)
        elif bond.GetBondType() in higher:
            bond.SetBondType(higher[bond.GetBondType()])
        else:
            continue
        keep(changed)
    return found


def lasting(molecule: Chem.Mol) -> bool:
    """Whether it is of the right size, and none of its groups falls apart by itself."""
    sized = Chem.AddHs(molecule).GetNumAtoms() in SIZES
    return sized and not any(molecule.HasSubstructMatch(group) for group in SHORT_LIVED)


def enumerate_molecules(heavy: int) -> dict[int, list[str]]:
    """Canonical SMILES of all molecules with up to so many atoms besides hydrogen, by number."""
    molecules: dict[str, Chem.Mol] = {}
    todo = ["C", "N", "O"]
    while todo:
        smiles = todo.pop()
        molecule = Chem.MolFromSmiles(smiles)
        if smiles in molecules or molecule is None or molecule.GetNumAtoms() > heavy:
            continue
        molecules[smiles] = molecule
        todo.extend(one_step_larger(molecule))
    found: dict[int, list[str]] = {size: [] for size in range(1, heavy + 1)}
    for smiles in sorted(molecules):
        if lasting(molecules[smiles]):
            found[molecules[smiles].GetNumAtoms()].append(smiles)
    return found


def known(path: Path) -> set[str]:
    """Canonical SMILES of a table's first column, or of a list."""
    names = (line.split(",")[0].strip() for line in path.read_text().splitlines())
    return {Chem.MolToSmiles(m) for m in map(Chem.MolFromSmiles, names) if m is not None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("without", nargs="*", type=Path)
    parser.add_argument("--heavy", type=int, default=4, help="all with up to so many")
    parser.add_argument("--more", type=int, default=300, help="so many with one more")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    RDLogger.DisableLog("rdApp.*")
    others = set().union(*map(known, arguments.without))
    molecules = {
        size: [smiles for smiles in some if smiles not in others]
        for size, some in enumerate_molecules(arguments.heavy + 1).items()
    }
    larger = molecules.pop(arguments.heavy + 1)
    chosen = sum(molecules.values(), [])
    chosen += random.Random(arguments.seed).sample(larger, min(arguments.more, len(larger)))
    print("\n".join(chosen))


if __name__ == "__main__":
    main()
