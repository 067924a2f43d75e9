"""DreamMatcher for ComfyUI: registration only."""

import sys

if "folder_paths" in sys.modules:  # inside a host; test runners import this file too, without one
    from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    WEB_DIRECTORY = "./web"
    __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
