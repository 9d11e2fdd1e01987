"""Starting structures: from a file, a common name, an ASE g2 name or a SMILES string."""

from __future__ import annotations

import difflib
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.collections import g2

from .extxyz_format import check_columns
from .trajectory import Trajectory, is_hdf5_trajectory

# Common names, and other ways to write the formula, of molecules of ASE's g2 collection.
_G2_OF_NAME = {
    "acetaldehyde": "CH3CHO",
    "acetamide": "CH3CONH2",
    "acetic acid": "CH3COOH",
    "acetone": "CH3COCH3",
    "acetonitrile": "CH3CN",
    "acetylene": "C2H2",
    "allene": "C3H4_D2d",
    "ammonia": "NH3",
    "aziridine": "CH2NHCH2",
    "benzene": "C6H6",
    "c2h5oh": "CH3CH2OH",
    "carbon dioxide": "CO2",
    "carbon monoxide": "CO",
    "ch2o": "H2CO",
    "ch3nh2": "H3CNH2",
    "cyclopropane": "C3H6_D3h",
    "dimethyl ether": "CH3OCH3",
    "dimethyl sulfoxide": "C2H6SO",
    "dimethylamine": "C2H6NH",
    "ethane": "C2H6",
    "ethanol": "CH3CH2OH",
    "ethene": "C2H4",
    "ethylamine": "CH3CH2NH2",
    "ethylene": "C2H4",
    "ethylene oxide": "CH2OCH2",
    "ethyne": "C2H2",
    "formaldehyde": "H2CO",
    "formic acid": "HCOOH",
    "furan": "C4H4O",
    "glyoxal": "OCHCHO",
    "hcho": "H2CO",
    "hydrazine": "N2H4",
    "hydrogen cyanide": "HCN",
    "hydrogen peroxide": "H2O2",
    "isobutane": "isobutane",
    "isopropanol": "C2H6CHOH",
    "ketene": "H2CCO",
    "methane": "CH4",
    "methanol": "CH3OH",
    "methyl formate": "HCOOCH3",
    "methylamine": "H3CNH2",
    "nitromethane": "CH3NO2",
    "propane": "C3H8",
    "propene": "C3H6_Cs",
    "propylene": "C3H6_Cs",
    "propyne": "C3H4_C3v",
    "pyridine": "C5H5N",
    "pyrrole": "C4H4NH",
    "water": "H2O",
}

# What g2 lacks: elements and positions (Å). Lowest of 20 conformers by RDKit's ETKDG and MMFF94,
# each relaxed with GFN2-xTB (tblite, accuracy 0.1) to forces under 0.005 eV/Å; centre of mass at
# the origin, principal axes along x, y and z.
_COORDINATES = {
    "alanine dipeptide": (  # N-acetyl-L-alanine N'-methylamide
        "CCONCCCONCHHHHHHHHHHHH",
        (
            (-3.077, -0.426, 0.846),
            (-1.844, -0.326, -0.022),
            (-1.563, -1.136, -0.888),
            (-1.072, 0.748, 0.238),
            (0.146, 1.049, -0.499),
            (0.462, 2.531, -0.400),
            (1.311, 0.199, 0.059),
            (2.194, 0.667, 0.748),
            (1.224, -1.091, -0.301),
            (2.165, -2.087, 0.149),
            (-3.675, 0.478, 0.758),
            (-2.788, -0.555, 1.887),
            (-3.668, -1.281, 0.532),
            (-1.285, 1.345, 1.021),
            (-0.028, 0.753, -1.541),
            (-0.385, 3.127, -0.733),
            (1.324, 2.763, -1.018),
            (0.710, 2.787, 0.628),
            (0.394, -1.402, -0.796),
            (2.580, -2.625, -0.704),
            (1.686, -2.801, 0.821),
            (2.966, -1.573, 0.680),
        ),
    ),
    "formamide": (
        "NCOHHH",
        (
            (-1.134, 0.162, 0.000),
            (0.089, -0.402, 0.000),
            (1.124, 0.206, 0.000),
            (-1.204, 1.167, 0.000),
            (-1.978, -0.381, 0.000),
            (0.037, -1.507, 0.000),
        ),
    ),
    "glycine": (
        "NCCOOHHHHH",
        (
            (-1.987, 0.010, 0.000),
            (-0.764, -0.762, 0.000),
            (0.502, 0.079, 0.000),
            (0.523, 1.281, 0.000),
            (1.609, -0.671, 0.000),
            (-2.012, 0.616, -0.814),
            (-2.012, 0.615, 0.815),
            (-0.744, -1.408, -0.883),
            (-0.744, -1.408, 0.882),
            (2.401, -0.109, 0.001),
        ),
    ),
    "urea": (
        "NCNOHHHH",
        (
            (1.151, -0.655, -0.036),
            (0.000, 0.092, 0.000),
            (-1.150, -0.655, 0.036),
            (0.000, 1.300, 0.000),
            (2.002, -0.150, 0.143),
            (1.132, -1.617, 0.256),
            (-2.002, -0.150, -0.143),
            (-1.132, -1.617, -0.256),
        ),
    ),
}

NAMES = tuple(sorted({**_G2_OF_NAME, **_COORDINATES}))

# g2 has lone atoms too; C, N and O are more use as the SMILES of methane, ammonia and water.
_G2_NAMES = frozenset(name for name in g2.names if len(molecule(name)) > 1)

# Names of g2 that are SMILES of another molecule: CO is carbon monoxide there, methanol as SMILES.
_AMBIGUOUS = frozenset(("CN", "CO", "CS", "ClNO", "ClO", "NCCN", "NO", "OCS", "SO"))


def read_structure(text: str | Path) -> Atoms:
    """The structure that `text` stands for; `info["name"]` and `info["source"]` say what it was.

    In this order: an existing structure file (the last frame of a trajectory of this package, of
    anything `ase.io.read` reads, or of an .xyz file laid out as those of QM9), a
    common name (one of NAMES, in any case), a name of ASE's g2 collection (lone atoms left out), a
    SMILES string (needs RDKit; its lowest MMFF conformer, and `info["smiles"]` in canonical form).
    `g2:` or `smiles:` before the text says which it is: a few, such as CO, could be either.

    Raises ValueError, saying what was tried, for anything else.
    """
    text = str(text).strip()
    kind, _, rest = text.partition(":")
    if kind == "smiles":
        return _from_smiles(rest)
    if kind == "g2":
        if rest not in _G2_NAMES:
            raise ValueError(f"{rest!r} is not a molecule of ASE's g2 collection{_near(rest)}")
        return _labelled(molecule(rest), rest, "g2")
    if _is_file(text):
        return _labelled(_from_file(Path(text)), Path(text).stem, "file")
    name = " ".join(text.lower().split())
    if name in _G2_OF_NAME:
        return _labelled(molecule(_G2_OF_NAME[name]), name, "common name")
    if name in _COORDINATES:
        symbols, positions = _COORDINATES[name]
        return _labelled(Atoms(symbols, np.array(positions)), name, "common name")
    if text in _AMBIGUOUS:
        raise ValueError(
            f"{text!r} is a name of ASE's g2 collection ({molecule(text).get_chemical_formula()}) "
            f"and the SMILES of another molecule; write g2:{text} or smiles:{text}"
        )
    if text in _G2_NAMES:
        return _labelled(molecule(text), text, "g2")
    try:
        return _from_smiles(text)
    except ValueError as error:
        raise ValueError(
            f"{text!r} is no structure: not an existing file, not a common name, not a molecule of "
            f"ASE's g2 collection, and as SMILES: {error}{_near(text)}"
        ) from None


def conformers(smiles: str, count: int, seed: int = 0) -> list[Atoms]:
    """Up to `count` different conformers of one neutral molecule, lowest MMFF94 energy first.

    RDKit's ETKDG with this seed, then MMFF94 (UFF where MMFF94 has no parameters). `info["smiles"]`
    is RDKit's canonical form. Positions in Å; atoms with an isotope label have its mass.

    Raises ValueError for an invalid SMILES, atoms that are no element, isotopes that are not known,
    several molecules, a charge or unpaired electrons, and ImportError without RDKit.
    """
    chem, all_chem, rd_base = _rdkit()
    with rd_base.BlockLogs():  # its complaints go to stderr; ours are the exceptions
        mol = chem.MolFromSmiles(smiles)
        if mol is None or mol.GetNumAtoms() == 0:
            raise ValueError(f"RDKit cannot parse {smiles!r}")
        smiles = chem.MolToSmiles(mol)
        if "." in smiles:
            raise ValueError(f"{smiles!r} has several molecules, expected one")
        if any(atom.GetAtomicNum() == 0 for atom in mol.GetAtoms()):
            raise ValueError(f"{smiles!r} has an atom that is no element (*), expected a molecule")
        if chem.GetFormalCharge(mol) != 0:
            raise ValueError(f"{smiles!r} has charge {chem.GetFormalCharge(mol)}, expected neutral")
        if any(atom.GetNumRadicalElectrons() for atom in mol.GetAtoms()):
            raise ValueError(f"{smiles!r} has unpaired electrons, expected a closed shell")
        mol = chem.AddHs(chem.MolFromSmiles(smiles))  # atoms ordered by the canonical form
        options = {"randomSeed": seed % 2**31, "pruneRmsThresh": 0.1}
        tries = 4 * count  # many of them fall into the same minimum
        ids = list(all_chem.EmbedMultipleConfs(mol, tries, **options))
        if not ids:
            ids = list(all_chem.EmbedMultipleConfs(mol, tries, useRandomCoords=True, **options))
        if not ids:
            raise ValueError(f"RDKit finds no three-dimensional structure of {smiles!r}")
        if all_chem.MMFFHasAllMoleculeParams(mol):
            results = all_chem.MMFFOptimizeMoleculeConfs(mol, maxIters=2000)
        else:
            results = all_chem.UFFOptimizeMoleculeConfs(mol, maxIters=2000)
    symbols = [atom.GetSymbol() for atom in mol.GetAtoms()]
    mass = chem.GetPeriodicTable().GetMassForIsotope  # 0 of unknown ones
    masses = {
        k: mass(atom.GetAtomicNum(), atom.GetIsotope())
        for k, atom in enumerate(mol.GetAtoms())
        if atom.GetIsotope()
    }
    if unknown := [symbols[k] for k, amu in masses.items() if not amu > 0]:
        raise ValueError(f"{smiles!r} has an isotope of {unknown[0]} that is not known")
    found: list[Atoms] = []
    last = -np.inf
    for energy, index in sorted((energy, i) for i, (_, energy) in zip(ids, results, strict=True)):
        if (
            energy - last > 0.05 and len(found) < count
        ):  # kcal/mol; closer ones are the same minimum
            atoms = Atoms(symbols, mol.GetConformer(index).GetPositions())
            atoms.info["smiles"] = smiles
            if masses:
                own = atoms.get_masses()
                own[[*masses]] = [*masses.values()]
                atoms.set_masses(own)
            found.append(_labelled(atoms, smiles, "SMILES"))
            last = energy
    return found


def _rdkit() -> tuple:
    try:
        from rdkit import Chem, rdBase
        from rdkit.Chem import AllChem
    except ImportError:
        raise ImportError(
            'reading SMILES needs RDKit, which is not installed: pip install "mdtrajnet_fast[data]"'
        ) from None
    return Chem, AllChem, rdBase


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # longer than a name can be: a SMILES string
        return False


def _from_file(path: Path) -> Atoms:
    if is_hdf5_trajectory(path):
        return Trajectory.read(path, slice(-1, None))[0]
    check_columns(path)
    try:
        atoms = ase.io.read(path)
    except Exception as error:  # the readers of ase.io raise anything
        if (found := _qm9(path)) is not None:
            return found
        raise ValueError(
            f"{path}: ase.io cannot read this structure file ({type(error).__name__}: {error})"
        ) from error
    assert isinstance(atoms, Atoms)  # one frame, not a list
    return atoms


def _qm9(path: Path) -> Atoms | None:
    """The molecule of a file laid out as those of QM9 (doi:10.1038/sdata.2014.22), or None.

    The number of atoms, properties, a line for each atom (element, position in Å, charge; exponents
    may be written *^), then frequencies, SMILES and InChI.
    """
    try:
        lines = path.read_text().splitlines()
        rows = [line.replace("*^", "e").split() for line in lines[2 : 2 + int(lines[0])]]
        if len(rows) != int(lines[0]) or {len(row) for row in rows} != {5}:
            return None
        return Atoms([row[0] for row in rows], [[float(x) for x in row[1:4]] for row in rows])
    except (ValueError, IndexError, KeyError):
        return None


def _from_smiles(smiles: str) -> Atoms:
    try:
        return conformers(smiles, 1)[0]
    except ImportError as error:
        raise ValueError(str(error)) from None


def _labelled(atoms: Atoms, name: str, source: str) -> Atoms:
    atoms.info["name"], atoms.info["source"] = name, source
    return atoms


def _near(text: str) -> str:
    lower = {name.lower(): name for name in (*_G2_NAMES, *NAMES)}
    near = difflib.get_close_matches(text.lower(), sorted(lower), n=4)
    return f"; did you mean {', '.join(lower[n] for n in near)}?" if near else ""
