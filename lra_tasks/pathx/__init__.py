"""Path-X: Pathfinder at 128x128, 16,384 grey pixels. All but the size is in `pathfinder`."""

from lra_tasks.pathfinder import (  # noqa: F401 - a task's module has all of these
    FIRST_ID,
    ID_OFFSET,
    LABEL_NAMES,
    NUM_CLASSES,
    NUM_DOCUMENTS,
    SOURCES,
    VERSION,
    VOCAB_SIZE,
    check,
    examples,
    find_files,
    num_examples,
    set_name,
    why_not_comparable,
)

TITLE = "Path-X"
PICTURE_SHAPE = (128, 128)
