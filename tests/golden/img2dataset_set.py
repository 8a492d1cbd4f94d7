"""What img2dataset 1.47 leaves of five links, one of them dead: tests/golden/img2dataset.

    pip install img2dataset==1.47.0
    python tests/golden/img2dataset_set.py
"""

import csv
import functools
import http.server
import pathlib
import shutil
import tempfile
import threading

import cv2
import numpy
from img2dataset import download

OUT = pathlib.Path(__file__).parent / "img2dataset"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        handler = functools.partial(Quiet, directory=folder)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 8765), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for i in range(4):
            picture = numpy.full((20, 24 + i, 3), 40 * i, numpy.uint8)
            cv2.imwrite(str(folder / f"{i}.jpg"), picture)
        with open(folder / "links.csv", "w") as file:
            rows = [(f"http://127.0.0.1:8765/{i}.jpg", f"picture {i}") for i in (0, 1, 9, 2, 3)]
            csv.writer(file).writerows([("url", "caption"), *rows])
        shutil.rmtree(OUT, ignore_errors=True)
        download(
            url_list=str(folder / "links.csv"),
            input_format="csv",
            caption_col="caption",
            output_format="webdataset",
            output_folder=str(OUT),
            image_size=16,
            number_sample_per_shard=3,
            processes_count=1,
            thread_count=1,
            disallowed_header_directives=[],
        )
        shutil.rmtree(OUT / "_tmp", ignore_errors=True)
