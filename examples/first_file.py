"""From a model to a file that is worth its bytes, through `import quantailor` alone. Cells run as they are in a notebook.

python examples/first_file.py [MODEL] [OUTPUT_FOLDER]
"""

# %% The model: a Hugging Face directory or a GGUF file. What is found out about it is kept in `home`.
import sys
from pathlib import Path

import quantailor as q

source = Path(sys.argv[1] if len(sys.argv) > 1 else "demo/books-llama")
folder = Path(sys.argv[2] if len(sys.argv) > 2 else "out")
folder.mkdir(parents=True, exist_ok=True)
model = q.open_model(source, home=folder / "home")
print(f"{model.name}: {len(model.tensors)} tensors, {model.architecture}")

# %% What its inputs look like (importance matrix), what each type costs in each tensor, and how much that matters to the model.
matrix = q.imatrix(model, chunks=10)
print(f"importance matrix of {matrix.chunk_count} chunks")
errors = q.measure(model, types=["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0"])
worst = max((cell for cell in errors.cells if cell.type_name == "Q4_K"), key=lambda cell: cell.weighted_mse or 0.0)
print(f"{errors.n_cells} cells; Q4_K loses most in {worst.tensor}: {worst.weighted_mse:.2%} of its output's energy")
probes = q.probe(model, chunks=1, types=["Q2_K"], group="role-depth", mixes=6, mix_chunks=1, anchors=0)
most = max(probes.sensitivities, key=lambda item: item.alpha.value)
print(f"{most.group} are the most sensitive tensors")

# %% A type for every tensor: as large as Q4_K_M, or with the attention's values kept at 8 bits.
strategy = q.plan(model, like="Q4_K_M")
pinned = q.plan(model, like="Q4_K_M", pins={"attn_v": "Q8_0"})
difference = q.compare(model, strategy, pinned)
print(f"pinning attn_v changes {len(difference.tensors)} tensors")
prediction = q.predict(model, strategy).prediction
print(f"predicted: {prediction.file_size_bytes:,} bytes, KL divergence {prediction.kld_nats:.4f} nats")

# %% The file, and what it is worth beside llama.cpp's own.
built = q.build(model, strategy, folder / "books.gguf", overwrite=True)
verdict = q.verify(model, built.paths[0], against=["Q4_K_M"], chunks=4)
print(verdict.sentence)
q.write_strategy(strategy, folder / "strategy.yaml", overwrite=True)
model.close()
