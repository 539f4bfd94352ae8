"""llama.cpp's own converter, for what our conversion does not know. Nothing of it is imported here: it runs in processes of its own.

locating      which converter: given, LLAMA_CPP_DIR, or that of the installed llama-cpp-python
sdist         the last of these, fetched once by pip
environment   the interpreter that has torch and transformers, ours or one made for it
trust         checkpoints that bring code
converting    the run itself
projector     what it makes of vision towers and audio encoders, as files of their own
failures      what it says as errors
checkpoint    a digest by which a conversion is found again
places        folders in the cache that appear whole
"""

from quantailor.models.upstream.checkpoint import checkpoint_digest
from quantailor.models.upstream.converting import Product, check_before, convert_directory, refuse_unknown
from quantailor.models.upstream.environment import interpreter
from quantailor.models.upstream.locating import Converter, locate
from quantailor.models.upstream.projector import (
    MARK,
    ProjectorType,
    ProjectorWish,
    has_tower,
    product,
    refuse_unknown_tower,
    require_tower,
    speaks_of_tower,
)
