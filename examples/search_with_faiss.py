"""Re-identification search: embed a gallery with a pruned model, index it with FAISS, and ask who is on a picture.

It shows `dynavit.embed`, whose embeddings have length 1, so that an index of inner products ranks by cosine; and that
the index is saved, so that later queries embed one picture alone.

Needs `pip install -e ".[train,examples]"`. From the repository's root, a few seconds on a CPU, with made-up people:

    python examples/search_with_faiss.py
    python examples/search_with_faiss.py --model checkpoints/animals --gallery my_animals/gallery --query IMAGE

If `--output` holds an index already, `--gallery` is not needed: the index is searched as it is. Millions of pictures
want an approximate index, such as `faiss.index_factory(dim, "IVF1024,Flat", faiss.METRIC_INNER_PRODUCT)`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import faiss
from PIL import Image

import dynavit
from dynavit.data.quickstart_reid import SyntheticIdentities


def main(argv: Sequence[str] | None = None) -> list[tuple[str, float]]:
    """Index the gallery, if there is a new one, and return the nearest pictures with their cosines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="checkpoints/quickstart-reid-dense", help="folder of a re-ID model")
    parser.add_argument("--keep-ratio", type=float, default=0.7, help="patches left after each stage")
    parser.add_argument("--gallery", help="folder of pictures; made-up people if neither it nor --query is given")
    parser.add_argument("--query", help="picture to search for")
    parser.add_argument("--top", type=int, default=5)
    parser.add_argument("--output", default="results/search", help="folder for the index and the pruned model")
    options = parser.parse_args(argv)
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    if options.gallery is None and options.query is None:
        options.gallery, options.query = draw_people(folder / "people")
    if options.query is None:
        parser.error("--gallery alone asks nothing: give --query as well.")
    index_file, names_file, model = folder / "gallery.faiss", folder / "gallery.json", folder / "model"
    if options.gallery is not None:
        prune(options.model, options.keep_ratio, model)
        names, embeddings = dynavit.embed(model, options.gallery)
        index = faiss.IndexFlatIP(embeddings.shape[1])
        index.add(embeddings.numpy())
        faiss.write_index(index, str(index_file))
        names_file.write_text(json.dumps(names))
        print(f"indexed {index.ntotal} pictures in {index_file}")
    elif not index_file.exists():
        parser.error(f"{index_file} does not exist: give --gallery once, to make it.")

    index, names = faiss.read_index(str(index_file)), json.loads(names_file.read_text())
    _, query = dynavit.embed(model, options.query)  # by the model that made the index
    cosines, places = index.search(query.numpy(), min(options.top, index.ntotal))
    found = [(names[place], float(cosine)) for place, cosine in zip(places[0], cosines[0], strict=True)]
    print(f"nearest to {options.query}:")
    for rank, (name, cosine) in enumerate(found, start=1):
        print(f"{rank:3}  {cosine:.4f}  {name}")
    return found


def prune(source: str, keep_ratio: float, folder: Path) -> None:
    """Save a model at a keep ratio; a dense one starts to prune, by merging, which needs no training."""
    model = dynavit.load(source)
    pruned = model.at_ratio(keep_ratio) if model.stages else dynavit.prune(model, keep_ratio=keep_ratio)
    pruned.save_pretrained(folder)


def draw_people(folder: Path) -> tuple[Path, Path]:
    """Draw a gallery of 20 made-up people, 12 pictures each, and a query; return where they are."""
    people = SyntheticIdentities(train=False, num_identities=20)
    for number, (identity, camera) in enumerate(zip(people.identities, people.cameras, strict=True)):
        kind = "query" if number < people.num_query else "gallery"
        path = folder / kind / f"person{identity:02}" / f"camera{camera}_{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(people.draw(number)[0]).save(path)
    return folder / "gallery", next(iter(sorted((folder / "query" / "person07").iterdir())))


if __name__ == "__main__":
    main()
