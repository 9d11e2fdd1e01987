"""Infrared and power spectrum of a molecule: python infrared_spectrum.py molecule.xyz [ps]"""

import sys

from mdtrajnet_fast import load_model, read_structure, simulate
from mdtrajnet_fast.analysis.observables import peaks
from mdtrajnet_fast.analysis.spectra import spectra
from mdtrajnet_fast.plots import write_spectrum

atoms = read_structure(sys.argv[1])
picoseconds = float(sys.argv[2]) if len(sys.argv) > 2 else 10.0
model = load_model("molecules-nve")
run = simulate(
    atoms,
    dt=2.0,
    duration=1000 * picoseconds,
    model=model,
    temperature_K=300,
    equilibration=1000,
    progress=True,
)
print(run.trust)

found = spectra(run, dipoles=model.dipoles(run))
table, picture = write_spectrum("infrared", found.wavenumber, found.motion, found.infrared)
for wavenumber, height in peaks(found.wavenumber, found.infrared):
    print(f"{wavenumber:6.0f} cm^-1  {height / found.infrared.max():5.2f} of the highest")
print(f"Written: {table}, {picture}")
