"""Phonon density of states of a diamond crystal: python phonon_dos.py crystal.cif [ps]"""

import sys

import numpy as np

from mdtrajnet_fast import load_model, read_structure, simulate
from mdtrajnet_fast.analysis.spectra import spectra

crystal = read_structure(sys.argv[1])
picoseconds = float(sys.argv[2]) if len(sys.argv) > 2 else 6.0
model = load_model("diamond")
# so often that waves of some lengths fit into it
heights = crystal.cell.volume / np.linalg.norm(
    np.cross(crystal.cell[[1, 2, 0]], crystal.cell[[2, 0, 1]]), axis=1
)
crystal = crystal.repeat([int(n) for n in np.ceil(12.0 / heights)])
run = simulate(
    crystal,
    dt=4.0,
    duration=1000 * picoseconds,
    model=model,
    temperature_K=300,
    equilibration=500,
    progress=True,
)
print(run.trust)

found = spectra(run, max_wavenumber=2000)
table = np.column_stack((found.wavenumber, found.motion))
np.savetxt("phonons.csv", table, delimiter=",", header="wavenumber_cm-1,density_cm", comments="")
print(f"{len(crystal)} atoms; highest at {found.wavenumber[found.motion.argmax()]:.0f} cm^-1")
