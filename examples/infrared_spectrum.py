"""Infrared and power spectrum of a molecule: python infrared_spectrum.py molecule.xyz [ps [runs]]

The mean of several runs: in one, bands are as high as the energy that they happened to start with.
"""

import sys

import numpy as np

from mdtrajnet_fast import CSVR, load_model, read_structure, simulate
from mdtrajnet_fast.analysis.observables import peaks
from mdtrajnet_fast.analysis.spectra import spectra
from mdtrajnet_fast.plots import write_spectrum

atoms = read_structure(sys.argv[1])
picoseconds = float(sys.argv[2]) if len(sys.argv) > 2 else 10.0
count = int(sys.argv[3]) if len(sys.argv) > 3 else 8
model = load_model("molecules-nve")
runs = simulate(
    [atoms] * count,
    dt=2.0,
    duration=1000 * picoseconds,
    model=model,
    temperature_K=300,
    thermostat=CSVR(temperature_K=300, time_constant_fs=1000),
    equilibration=1000,
    seed=list(range(count)),
    progress=True,
)
for run in runs:
    print(run.trust)

found = [spectra(run, dipoles=model.dipoles(run)) for run in runs]
wavenumber, motion = found[0].wavenumber, np.mean([one.motion for one in found], axis=0)
each = np.array([one.infrared for one in found])
infrared, error = each.mean(0), each.std(0, ddof=1) / np.sqrt(count)
table, picture = write_spectrum("infrared", wavenumber, motion, infrared)
for position, height in peaks(wavenumber, infrared):
    chance = error[np.argmin(abs(wavenumber - position))]
    shares = height / infrared.max(), chance / infrared.max()
    print(f"{position:6.0f} cm^-1  {shares[0]:5.2f} ± {shares[1]:.2f} of the highest")
print(f"Written: {table}, {picture}")
