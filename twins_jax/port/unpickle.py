"""Reads pickles as data: nothing that a pickle names is imported, and nothing is called but the reader's own functions.

A pickle is a program for a stack machine. `pickletools` splits it into instructions without running any; this file
carries them out. Lists, dicts, tuples, numbers and strings become what they are. A name, such as "posix.system",
becomes a `Placeholder`; so does all that the pickle would make by calling it.
"""

import dataclasses
import mmap
import pickletools
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any, cast

MAX_INSTRUCTIONS = 10_000_000
"""A hundred times as many as large training checkpoints hold. Each makes at most one object, of 100 bytes or so."""

MAX_NAME = 256
"""Characters of the longest name of a class or function."""

MAX_KEY_ITEMS = 16
"""The longest tuple that is a dict's key: to hash longer and nested ones could take forever, or the whole C stack."""

PYTHON_2_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
"""Pickles of protocol 2 name these modules as Python 2 did."""

SCALARS = (str, int, float, bytes, type(None))


class UnpickleError(ValueError):
    """A pickle is damaged, or not of the kind that this reader knows."""


@dataclasses.dataclass(eq=False, slots=True)
class Placeholder:
    """Something that a pickle names, or an object that it would make by calling that: dead data.

    Attributes:
        name: the module and name, or those of the class or function that would have been called.
        arguments: of that call.
        state: the object's attributes, mostly a dict.
        items: what the pickle would have put in with `object[key] = value`.
    """

    name: str
    arguments: Any = ()
    state: Any = None
    items: dict[Any, Any] = dataclasses.field(default_factory=dict)


Functions = Mapping[str, Callable[..., Any]]
"""The full name of a class or function -> our own function that is called in its place."""


def make_dict(*arguments: Any) -> dict[Any, Any]:
    """Returns the content of `collections.OrderedDict(...)`: of nothing, of a dict, or of pairs."""
    given = arguments[0] if arguments else {}
    if isinstance(given, dict):
        return given
    pairs = given.copy()
    given.clear()  # else a short pickle could have one long list copied without end
    made: dict[Any, Any] = {}
    _put(made, [value for key, item in pairs for value in (key, item)])
    return made


BUILTINS: Functions = {
    "collections.OrderedDict": make_dict,
    "collections.Counter": make_dict,
    "collections.defaultdict": lambda *_: {},
}
"""Classes of the standard library whose objects may hold weights."""

CONSTRUCTORS = ("copyreg.__newobj__", "copyreg.__newobj_ex__", "copyreg._reconstructor")
"""Functions that make an object of the class that is their first argument."""


def unpickle(
    file: IO[bytes] | mmap.mmap, functions: Functions, persistent_load: Callable[[Any], Any], names: dict[str, None]
) -> Any:
    """Reads one pickle.

    Args:
        file: at the pickle's beginning; afterwards behind its end. Reads of more than it holds must give what is left.
        functions: called in the place of what the pickle names; errors that they raise are the pickle's.
        persistent_load: gives the object of a persistent id.
        names: receives, in order, every name in the pickle for which `functions` has nothing.

    Raises:
        UnpickleError: the pickle is damaged, or too long.
    """
    machine = _Machine({**BUILTINS, **functions}, persistent_load, names)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in strings
            for count, (opcode, argument, _) in enumerate(pickletools.genops(cast(IO[bytes], file))):
                if count > MAX_INSTRUCTIONS:
                    raise UnpickleError(f"the pickle has more than {MAX_INSTRUCTIONS:,} instructions")
                machine.run(opcode.name, argument)
        return machine.stack.pop()
    except UnpickleError:
        raise
    except Exception as error:  # what damaged instructions and wrong arguments raise depends on the bytes
        raise UnpickleError(f"damaged pickle: {type(error).__name__}") from error


class _Machine:
    """The stack, the marked stacks below it, and the memo of objects that are used again."""

    def __init__(self, functions: Functions, persistent_load: Callable[[Any], Any], names: dict[str, None]) -> None:
        self.functions = functions
        self.persistent_load = persistent_load
        self.names = names
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, name: str, argument: Any) -> None:
        """Carries out one instruction."""
        if name in PUSHES:
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in GETS:
            self.stack.append(self.memo[argument])
        elif name in PUTS:
            self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]
        elif name not in IGNORED:
            method: Callable[..., None] | None = getattr(self, f"op_{name.lower()}", None)
            if method is None:
                raise UnpickleError(f"the pickle has an instruction {name}")
            method(*(() if argument is None else (argument,)))

    def pop_mark(self) -> list[Any]:
        """Returns what was pushed since the last mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def op_mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def op_pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def op_pop_mark(self) -> None:
        self.pop_mark()

    def op_dup(self) -> None:
        self.stack.append(self.stack[-1])

    # Containers.

    def op_empty_list(self) -> None:
        self.stack.append([])

    def op_empty_dict(self) -> None:
        self.stack.append({})

    def op_empty_set(self) -> None:
        self.stack.append(Placeholder("builtins.set"))

    def op_list(self) -> None:
        items = self.pop_mark()
        self.stack.append(items)

    def op_tuple(self) -> None:
        items = self.pop_mark()
        self.stack.append(tuple(items))

    def op_tuple1(self) -> None:
        self._tuple(1)

    def op_tuple2(self) -> None:
        self._tuple(2)

    def op_tuple3(self) -> None:
        self._tuple(3)

    def _tuple(self, length: int) -> None:
        if len(self.stack) < length:
            raise UnpickleError("damaged pickle: a tuple lacks items")
        items = tuple(self.stack[-length:])
        self.stack[-length:] = [items]

    def op_dict(self) -> None:
        items = self.pop_mark()
        made: dict[Any, Any] = {}
        _put(made, items)
        self.stack.append(made)

    def op_frozenset(self) -> None:
        self.pop_mark()
        self.stack.append(Placeholder("builtins.frozenset"))

    def op_append(self) -> None:
        item = self.stack.pop()
        self._extend([item])

    def op_appends(self) -> None:
        items = self.pop_mark()
        self._extend(items)

    def op_additems(self) -> None:
        self.pop_mark()

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Placeholder):
            raise UnpickleError(f"damaged pickle: appends to a {type(target).__name__}")

    def op_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def op_setitems(self) -> None:
        items = self.pop_mark()
        self._set_items(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Placeholder):
            target = target.items
        elif not isinstance(target, dict):
            raise UnpickleError(f"damaged pickle: sets items of a {type(target).__name__}")
        _put(target, items)

    # What a pickle names, and would call.

    def op_global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._name(module, name)

    def op_stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise UnpickleError("damaged pickle: a name is no text")
        self._name(module, name)

    def _name(self, module: str, name: str) -> None:
        if len(module) + len(name) > MAX_NAME:
            raise UnpickleError(f"the pickle has a name of more than {MAX_NAME} characters")
        full = f"{PYTHON_2_MODULES.get(module, module)}.{name}"
        if full not in self.functions:
            self.names[full] = None
        self.stack.append(Placeholder(full))

    def op_ext1(self, code: int) -> None:
        self._name("copyreg", f"extension {code}")

    op_ext2 = op_ext4 = op_ext1

    def op_reduce(self) -> None:
        arguments = self.stack.pop()
        self._call(self.stack.pop(), arguments)

    op_newobj = op_reduce

    def op_newobj_ex(self) -> None:
        self.stack.pop()  # arguments by name
        self.op_reduce()

    def op_inst(self, argument: str) -> None:
        arguments = self.pop_mark()
        self.op_global(argument)
        self._call(self.stack.pop(), tuple(arguments))

    def op_obj(self) -> None:
        called, *arguments = self.pop_mark()
        self._call(called, tuple(arguments))

    def _call(self, called: Any, arguments: Any) -> None:
        if not (isinstance(called, Placeholder) and isinstance(arguments, tuple)):
            raise UnpickleError(f"damaged pickle: calls a {type(called).__name__}")
        if called.name in CONSTRUCTORS and arguments and isinstance(arguments[0], Placeholder):
            called, arguments = arguments[0], ()
        function = self.functions.get(called.name)
        self.stack.append(function(*arguments) if function else Placeholder(called.name, arguments))

    def op_build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Placeholder):
            self.stack[-1].state = state

    def op_persid(self, argument: str) -> None:
        self.stack.append(self.persistent_load(argument))

    def op_binpersid(self) -> None:
        self.stack.append(self.persistent_load(self.stack.pop()))


NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
STRINGS = ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
PUSHES = frozenset(NUMBERS + STRINGS + BYTES)
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
GETS = frozenset(("GET", "BINGET", "LONG_BINGET"))
PUTS = frozenset(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"))
IGNORED = frozenset(("PROTO", "FRAME", "STOP", "READONLY_BUFFER"))


def _put(target: dict[Any, Any], items: list[Any]) -> None:
    """Puts keys and values, in turn, into a dict; a key that is too complex to hash gives way to a placeholder."""
    keys: Iterable[Any] = items[::2]
    for key, value in zip(keys, items[1::2], strict=True):
        target[key if _is_key(key) else Placeholder(type(key).__name__)] = value


def _is_key(value: Any) -> bool:
    if isinstance(value, tuple):
        return len(value) <= MAX_KEY_ITEMS and all(isinstance(item, (*SCALARS, Placeholder)) for item in value)
    return isinstance(value, (*SCALARS, Placeholder))
