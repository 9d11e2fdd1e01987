"""One self-contained HTML page that shows a run.

``static/`` holds the page's template, style and scripts, and the viewer 3Dmol.js 2.5.5 (N. Rego,
D. Koes, Bioinformatics 31, 1322 (2015)) as the npm registry has it, with its licence.
"""
