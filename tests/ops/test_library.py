"""What the built library needs and holds, as binutils see it."""

import importlib
import platform
import re
import shutil
import subprocess

import pytest

from mask2former_ops import _extension

pytestmark = pytest.mark.skipif(_extension.MISSING is not None, reason=str(_extension.MISSING))

# Of torch the C functions of its stable ABI alone: what is C++ there changes with every version.
STABLE = re.compile(
    r"(aoti_)?torch_\w+"
    r"|Py\w+|_Py_(NoneStruct|TrueStruct|FalseStruct|Dealloc)"  # Python's limited API
    r"|\w+@+(GLIBC|GLIBCXX|CXXABI|GCC|GOMP|OMP)_[\w.]+"
    r"|(?!.*N(2at|3c10|5torch)\d)_ZN?K?[RO]?St\w+"  # the C++ library, of no type of torch
    r"|_Z(nw|na|dl|da)\w+|__cxa_\w+|__gxx_\w+"
    r"|__gmon_start__|_ITM_\w+|__dso_handle"
    # make test-sanitize, where the sanitizers stand in front of functions of the C library
    r"|__(asan|ubsan|sanitizer)_\w+|(mem|str)(chr|cmp|cpy|len|move|set)"
)
WIDE = {"avx2": {"ymm"}, "avx512": {"ymm", "zmm"}}  # registers that each set has beyond SSE
FUNCTION = re.compile(r"^[0-9a-f]+ <(.+)>:$")
INSTRUCTION = re.compile(r"^ *[0-9a-f]+:\t(?:\{\w+\} *)?(\w+)(.*)$")
NAMESPACE = re.compile(r"mask2former\d+(avx2|avx512)")


def output_of(*command: str) -> str:
    """What a tool of binutils says of the library, or a skip where the tool is missing."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    library = importlib.import_module("mask2former_ops._C").__file__
    return subprocess.run([*command, library], capture_output=True, text=True, check=True).stdout


def unstable(symbols: str) -> list[str]:
    """The names that `nm` lists as undefined and that are not STABLE."""
    names = [line.split()[-1] for line in symbols.splitlines()]
    return [name for name in names if not STABLE.fullmatch(name)]


def registers_by_function(disassembly: str) -> dict[str, set[str]]:
    """The kinds of registers, and "vex" for AVX instructions of any width, of each function."""
    found: dict[str, set[str]] = {}
    function = ""
    for line in disassembly.splitlines():
        if match := FUNCTION.match(line):
            function = match[1]
        elif match := INSTRUCTION.match(line):
            kinds = set(re.findall(r"%([yz]mm)\d", match[2]))
            if match[1].startswith("v") and "mm" in match[2]:
                kinds.add("vex")
            if kinds:
                found.setdefault(function, set()).update(kinds)
    return found


def misplaced(disassembly: str) -> list[str]:
    """Functions with instructions that the instruction set of their namespace does not have."""
    functions = []
    for name, kinds in registers_by_function(disassembly).items():
        namespace = NAMESPACE.search(name)
        if not namespace or not kinds <= WIDE[namespace[1]] | {"vex"}:
            functions.append(name)
    return functions


def test_of_torch_it_needs_the_stable_abi_alone():
    symbols = output_of("nm", "--dynamic", "--undefined-only")
    assert "torch_library_impl" in symbols
    assert unstable(symbols) == []


@pytest.mark.skipif(platform.machine() != "x86_64", reason="AVX is x86's")
def test_instructions_of_avx_are_in_functions_of_their_instruction_set_alone():
    disassembly = output_of("objdump", "--disassemble", "--no-show-raw-insn")
    if not NAMESPACE.search(disassembly):
        pytest.skip("the library is stripped of its symbols")
    kinds = registers_by_function(disassembly)
    for namespace, wide in WIDE.items():
        own = [kinds[name] for name in kinds if f"mask2former{len(namespace)}{namespace}" in name]
        assert set().union(*own) == wide | {"vex"}
    assert misplaced(disassembly) == []


@pytest.mark.parametrize(
    "name",
    [
        "_ZN2at15get_num_threadsEv",
        "_ZN3c1010TensorImpl4sizeEl",
        "_ZN5torch7LibraryC1Ev",
        "_ZNSt6vectorIN2at6TensorESaIS1_EE9push_backERKS1_",
        "_PyObject_New",
    ],
)
def test_a_symbol_that_changes_with_versions_is_found(name):
    assert unstable(f"                 U torch_parallel_for\n                 U {name}\n") == [name]


@pytest.mark.parametrize(
    ("name", "instruction"),
    [
        ("_ZNSt6vectorIlE9push_backEl", "vmovups (%rdi),%ymm0"),
        ("_ZNSt6vectorIlE9push_backEl", "vxorps %xmm0,%xmm0,%xmm0"),
        ("_ZN11mask2former8baseline7forwardEv", "vpxor  %ymm0,%ymm0,%ymm0"),
        ("_ZN11mask2former4avx27forwardEv", "vaddps %zmm0,%zmm1,%zmm2{%k1}{z}"),
    ],
)
def test_an_instruction_outside_of_its_set_is_found(name, instruction):
    text = f"""
0000000000000010 <_ZN11mask2former6avx5127forwardEv>:
      10:\tvaddps %zmm0,%zmm1,%zmm2
0000000000000020 <{name}>:
      20:\tmov    %rsp,%rbp
      24:\t{instruction}
      28:\tret
"""
    assert misplaced(text) == [name]
