"""Harmonic frequencies and a power spectrum: python harmonic_frequencies.py molecule.xyz

With ASE's optimiser and vibrations, on the potential energy that the model knows.
"""

import sys
import tempfile

import numpy as np
from ase.optimize import BFGS
from ase.vibrations import Vibrations

from mdtrajnet_fast import MDtrajNetCalculator, load_model, read_structure, simulate
from mdtrajnet_fast.analysis.observables import peaks
from mdtrajnet_fast.analysis.spectra import spectra

atoms = read_structure(sys.argv[1])
model = load_model("molecules-nve", dtype="float64")
atoms.calc = MDtrajNetCalculator(model)
BFGS(atoms, logfile=None).run(fmax=0.01, steps=200)
with tempfile.TemporaryDirectory() as folder:
    vibrations = Vibrations(atoms, name=f"{folder}/displaced")
    vibrations.run()
    frequencies = vibrations.get_frequencies()
harmonic = np.sort(frequencies.real)[6:]  # without the motion as a whole

run = simulate(atoms, dt=2.0, duration=3000, model=model, temperature_K=300, equilibration=300)
found = spectra(run)
print("harmonic   ", *(f"{w:.0f}" for w in harmonic), "cm^-1")
print("at 300 K   ", *(f"{w:.0f}" for w, _ in peaks(found.wavenumber, found.motion)), "cm^-1")
