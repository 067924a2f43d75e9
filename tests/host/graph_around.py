"""Values that come by a link, and graphs queued one after the other."""

from __future__ import annotations

from harness.graphs import node


class Anything(str):
    """A type that goes with every other, as packs declare it for nodes that hand a value on."""

    def __ne__(self, other: object) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = str.__hash__


class TestValue:
    """Hands on what is written in it, as primitive nodes and those of other packs do."""

    __test__ = False
    RETURN_TYPES, FUNCTION, CATEGORY = (Anything("*"),), "give", "test"
    values: dict[str, object] = {}

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"name": ("STRING", {"default": ""})}}

    def give(self, name):
        return (self.values[name],)


class TestList(TestValue):
    """Hands on a list, as dataset loaders do."""

    OUTPUT_IS_LIST = (True,)


def linked(host, value: object, name: str = "", kind: type = TestValue) -> dict:
    """A graph's node whose first output is ``value``."""
    host.nodes[kind.__name__] = kind
    name = name or repr(value)
    kind.values[name] = value
    return node(kind.__name__, name=name)


def ran(host, prompt: dict, executor) -> set[str]:
    """The nodes of a prompt that this queue ran and did not take from the cache."""
    result = host.run(prompt, executor)
    assert result.success, result.error()
    cached = next(data["nodes"] for event, data in result.messages if event == "execution_cached")
    return prompt.keys() - set(cached)
