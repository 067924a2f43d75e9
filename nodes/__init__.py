"""The nodes: all that the user sees."""

from ..dreammatcher.host.graph import bypass
from ..dreammatcher.host.matching import words_ahead
from ..dreammatcher.host.model import report
from . import (
    easy,
    evaluation,
    learn,
    learned,
    matching,
    preview,
    reference,
    sefi,
    toybox,
    training,
    training_job,
    training_sets,
    vico,
)
from .missing import says_what_is_missing
from .search import ALIASES, former_name

NODE_CLASS_MAPPINGS = {}
NODE_DISPLAY_NAME_MAPPINGS = {}
MENUS = (easy, reference, matching, preview, learn, training_sets, training, training_job, learned, vico, sefi, evaluation,
         toybox)
for menu in MENUS:
    NODE_CLASS_MAPPINGS.update({node.__name__: node for node in menu.NODES})
    NODE_DISPLAY_NAME_MAPPINGS.update({node.__name__: node.TITLE for node in menu.NODES})

for name, node in NODE_CLASS_MAPPINGS.items():
    says_what_is_missing(node)
    node.SEARCH_ALIASES = [former_name(node.TITLE), *ALIASES[name]]
bypass.listen(NODE_CLASS_MAPPINGS)
report.listen()
words_ahead.listen()
