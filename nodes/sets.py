"""Pictures that come as a list of ComfyUI's, as one set."""

from __future__ import annotations

from typing import Any

from ..dreammatcher.host.graph.records import at_element


def takes_sets(*names: str):
    """Class decorator of a node: a list that comes to one of the inputs ``names`` is one set.

    By itself the host runs a node once for each element of a list: three pictures would be three sets of one. Lists at other
    inputs still make it run for each of theirs. The node's own method gets a list where there are several elements, and the
    element itself where there is one; a class with ``sets_of`` says by the given lists which inputs are sets.
    """
    def changed(kind: type[Any]) -> type[Any]:
        run = kind.FUNCTION

        def run_for_lists(self, **given: list) -> dict[str, Any] | tuple[list, ...]:
            sets = kind.sets_of(given) if hasattr(kind, "sets_of") else names
            returned = []
            for number, values in enumerate(_runs(given, sets)):
                with at_element(number, given):
                    returned.append(getattr(self, run)(**values))
            return _merged(returned, len(kind.RETURN_TYPES))

        kind.INPUT_IS_LIST, kind.OUTPUT_IS_LIST = True, (True,) * len(kind.RETURN_TYPES)
        kind.FUNCTION, kind.RUNS, kind.run_for_lists = "run_for_lists", run, run_for_lists
        return kind
    return changed


def listed(value: Any) -> list:
    """The elements of what the host gives a node that takes lists; a value by itself is a list of one."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _runs(given: dict[str, list], sets: tuple[str, ...]) -> list[dict[str, Any]]:
    """The arguments of each run, by the host's rule: as many as the longest list has elements, short ones repeat their last."""
    several = {name: values for name, values in given.items() if name not in sets}
    whole = {name: values[0] if len(values) == 1 else list(values) for name, values in given.items() if name in sets}
    lengths = [len(values) for values in several.values()] or [1]
    count = max(lengths) if min(lengths) else 0  # nothing comes of an empty list
    return [{**whole, **{name: values[min(number, len(values) - 1)] for name, values in several.items()}}
            for number in range(count)]


def _merged(returned: list[dict[str, Any] | tuple], outputs: int) -> dict[str, Any] | tuple[list, ...]:
    """Outputs of every run as lists, and what they show one after the other."""
    results = [each["result"] if isinstance(each, dict) else each for each in returned]
    lists = tuple([result[number] for result in results] for number in range(outputs))
    shown: dict[str, list] = {}
    for each in returned:
        for name, values in each.get("ui", {}).items() if isinstance(each, dict) else ():
            shown.setdefault(name, []).extend(values)
    return {"ui": shown, "result": lists} if any(isinstance(each, dict) for each in returned) else lists
