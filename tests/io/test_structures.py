"""Names, files and SMILES as starting structures."""

from __future__ import annotations

import sys

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.collections import g2
from ase.data import covalent_radii
from rdkit import Chem
from rdkit.Chem.rdMolDescriptors import CalcMolFormula

from mdtrajnet_fast import Trajectory
from mdtrajnet_fast.io import structures
from mdtrajnet_fast.io.structures import NAMES, conformers, read_structure

SMILES = {
    "acetaldehyde": "CC=O",
    "acetamide": "CC(N)=O",
    "acetic acid": "CC(=O)O",
    "acetone": "CC(C)=O",
    "acetonitrile": "CC#N",
    "acetylene": "C#C",
    "alanine dipeptide": "CNC(=O)C(C)NC(C)=O",
    "allene": "C=C=C",
    "ammonia": "N",
    "aziridine": "C1CN1",
    "benzene": "c1ccccc1",
    "c2h5oh": "CCO",
    "carbon dioxide": "O=C=O",
    "carbon monoxide": "[C-]#[O+]",
    "ch2o": "C=O",
    "ch3nh2": "CN",
    "cyclopropane": "C1CC1",
    "dimethyl ether": "COC",
    "dimethyl sulfoxide": "CS(C)=O",
    "dimethylamine": "CNC",
    "ethane": "CC",
    "ethanol": "CCO",
    "ethene": "C=C",
    "ethylamine": "CCN",
    "ethylene": "C=C",
    "ethylene oxide": "C1CO1",
    "ethyne": "C#C",
    "formaldehyde": "C=O",
    "formamide": "NC=O",
    "formic acid": "O=CO",
    "furan": "c1ccoc1",
    "glycine": "NCC(=O)O",
    "glyoxal": "O=CC=O",
    "hcho": "C=O",
    "hydrazine": "NN",
    "hydrogen cyanide": "C#N",
    "hydrogen peroxide": "OO",
    "isobutane": "CC(C)C",
    "isopropanol": "CC(C)O",
    "ketene": "C=C=O",
    "methane": "C",
    "methanol": "CO",
    "methyl formate": "COC=O",
    "methylamine": "CN",
    "nitromethane": "C[N+](=O)[O-]",
    "propane": "CCC",
    "propene": "C=CC",
    "propylene": "C=CC",
    "propyne": "C#CC",
    "pyridine": "c1ccncc1",
    "pyrrole": "c1cc[nH]c1",
    "urea": "NC(N)=O",
    "water": "O",
}


def bonds(atoms):
    """Sorted pairs of element symbols at bonding distance."""
    radii = covalent_radii[atoms.numbers]
    near = atoms.get_all_distances() < 1.25 * (radii[:, None] + radii)
    pairs = np.argwhere(np.triu(near, 1))
    return sorted("".join(sorted(atoms.symbols[i] + atoms.symbols[j])) for i, j in pairs)


@pytest.mark.parametrize("name", NAMES)
def test_common_names_are_the_right_molecules(name):
    atoms = read_structure(f" {name.upper()} ")
    mol = Chem.AddHs(Chem.MolFromSmiles(SMILES[name]))
    expected = sorted(
        "".join(sorted(b.GetBeginAtom().GetSymbol() + b.GetEndAtom().GetSymbol()))
        for b in mol.GetBonds()
    )
    assert bonds(atoms) == expected
    assert atoms.get_chemical_formula("hill") == CalcMolFormula(mol).rstrip("+-")
    assert atoms.info["name"] == name and atoms.info["source"] == "common name"


def test_alanine_dipeptide_is_the_l_form():
    atoms = read_structure("alanine dipeptide")
    mol = Chem.AddHs(Chem.MolFromSmiles("CC(=O)N[C@@H](C)C(=O)NC"))  # same order of atoms
    assert [a.GetSymbol() for a in mol.GetAtoms()] == atoms.get_chemical_symbols()
    conformer = Chem.Conformer(len(atoms))
    for i, position in enumerate(atoms.positions):
        conformer.SetAtomPosition(i, position.tolist())
    mol.RemoveAllConformers()
    mol.AddConformer(conformer)
    Chem.AssignStereochemistryFrom3D(mol)
    assert Chem.FindMolChiralCenters(mol) == [(4, "S")]


def test_files_come_first_and_give_their_last_frame(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = [Atoms("ArNe", [[0, 0, 0], [0, 0, 3 + k]], cell=[9, 9, 9], pbc=True) for k in (0, 1)]
    ase.io.write("water", images, format="extxyz")
    atoms = read_structure("water")
    assert atoms.get_distance(0, 1) == 4 and atoms.pbc.all()
    assert (atoms.info["name"], atoms.info["source"]) == ("water", "file")
    (tmp_path / "bad.extxyz").write_text("hello")
    with pytest.raises(ValueError, match="bad.extxyz: ase.io cannot read this structure file"):
        read_structure("bad.extxyz")


def test_g2_names_and_smiles():
    atoms = read_structure("CH3CONH2")
    assert atoms == molecule("CH3CONH2") and atoms.info["source"] == "g2"
    atoms = read_structure("OCC")
    assert atoms.get_chemical_formula() == "C2H6O" and atoms.info["source"] == "SMILES"
    assert atoms.info["smiles"] == atoms.info["name"] == "CCO"  # canonical
    assert read_structure("O").get_chemical_formula() == "H2O"  # not g2's oxygen atom
    assert read_structure("g2:CO").get_chemical_formula() == "CO"
    assert read_structure("smiles:CO").get_chemical_formula() == "CH4O"


def test_every_text_that_could_be_either_is_refused():
    for name in g2.names:
        mol = Chem.MolFromSmiles(name)
        if mol is None or len(molecule(name)) == 1:
            continue
        if CalcMolFormula(mol) == molecule(name).get_chemical_formula("hill"):
            assert read_structure(name).info["source"] == "g2"
        else:
            with pytest.raises(ValueError, match=f"write g2:{name} or smiles:{name}"):
                read_structure(name)


@pytest.mark.parametrize(
    "text, message",
    [
        ("etanol", "'etanol' is no structure: .*cannot parse 'etanol'; did you mean ethanol"),
        ("ch4", "did you mean CH4"),
        ("nothing.xyz", "not an existing file"),
        ("[NH4+]", "has charge 1"),
        ("[CH3]", "unpaired electrons"),
        ("C.C", "has several molecules"),
        ("", "cannot parse ''"),
        ("*C", "an atom that is no element"),
        ("[99H]O[2H]", "has an isotope of H that is not known"),
        ("C" * 300 + "*", "an atom that is no element"),
        ("g2:CH3CONH", "not a molecule of ASE's g2 collection; did you mean CH3CONH2"),
        ("smiles:C(", r"RDKit cannot parse 'C\('"),
    ],
)
def test_what_is_no_structure(text, message):
    with pytest.raises(ValueError, match=message):
        read_structure(text)


def test_files_of_qm9(tmp_path):
    path = tmp_path / "dsgdb9nsd_000003.xyz"
    path.write_text(
        "3\ngdb 3\t799.6\t437.9\nO\t-0.0343\t 0.9775\t 0.0076\t-0.59\n"
        "H\t 0.0647\t 0.0206\t 1.5*^-3\t 0.29\nH\t 0.8717\t 1.3008\t 0.0007\t 0.29\n"
        "1671.4\t3803.1\t3907.7\nO\tO\nInChI=1S/H2O/h1H2\tInChI=1S/H2O/h1H2\n"
    )
    atoms = read_structure(str(path))
    assert str(atoms.symbols) == "OH2" and atoms.positions[1, 2] == 0.0015
    path.write_text(path.read_text().replace("0.9775", "zero"))
    with pytest.raises(ValueError, match="cannot read this structure file"):
        read_structure(str(path))


def test_own_trajectories_give_their_last_frame(tmp_path):
    water = read_structure("water")
    x = np.stack([water.positions, water.positions + 1])
    Trajectory(water, [0, 1], x, np.stack([x[0], 2 * x[0]])).write(tmp_path / "run.h5")
    atoms = read_structure(str(tmp_path / "run.h5"))
    np.testing.assert_array_equal(atoms.positions, x[1])
    np.testing.assert_array_equal(atoms.get_momenta(), 2 * x[0])


def test_without_rdkit(monkeypatch):
    monkeypatch.setitem(sys.modules, "rdkit", None)
    assert read_structure("water").get_chemical_formula() == "H2O"
    with pytest.raises(ValueError, match=r'RDKit, .* pip install "mdtrajnet_fast\[data\]"'):
        read_structure("CCO")
    with pytest.raises(ImportError, match=r"mdtrajnet_fast\[data\]"):
        conformers("CCO", 1)


def test_conformers():
    found = conformers("OCCO", 3, seed=5)
    assert len(found) == 3
    shapes = [np.sort(atoms.get_all_distances(), axis=None) for atoms in found]
    for i in range(3):
        assert bonds(found[i]) == bonds(found[0])
        for j in range(i):
            assert np.abs(shapes[i] - shapes[j]).max() > 0.1
    for one, two in zip(found, conformers("C(O)CO", 3, seed=5), strict=True):
        assert one == two  # whatever way the SMILES is written
    assert len(conformers("O", 3)) == 1
    assert not np.allclose(conformers("O", 1, seed=6)[0].positions, conformers("O", 1)[0].positions)
    assert structures._AMBIGUOUS <= set(g2.names)


def test_isotope_labels_are_masses():
    heavy = read_structure("[2H]OC([13CH3])=O")
    masses = dict(zip(heavy.get_chemical_symbols(), heavy.get_masses().round(3), strict=True))
    assert sorted(heavy.get_masses()[heavy.numbers == 1].round(3)) == [1.008, 1.008, 1.008, 2.014]
    assert sorted(heavy.get_masses()[heavy.numbers == 6].round(3)) == [12.011, 13.003]
    assert masses["O"] == 15.999 and heavy.info["smiles"].count("2H") == 1
    assert not read_structure("OC(C)=O").has("masses")
