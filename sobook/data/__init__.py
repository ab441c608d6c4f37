"""Data sets: images with a class each, from a benchmark, a folder, or drawn.

Start with `image_sets`; `pictures` reads files as people have them, `benchmarks` each publisher's
format, `fetch` downloads, `pixels` caches decoded images, `loader` makes batches of them.
"""

from sobook.data.image_sets import (
    ImageSet as ImageSet,
    hold_out as hold_out,
    load as load,
    load_splits as load_splits,
    prepare as prepare,
)
from sobook.data.pictures import read_image as read_image
