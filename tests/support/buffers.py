"""Whether a pipelined loop that Triton compiled for Hopper has as many buffers as it needs, read from its TTGIR.

`warp_group_dot` reads its operands from shared memory while the program goes on; `pendings` of a wait says how many
products may then still be under way. So may be the copies for later steps: as many of an operand as are issued before
the loop begins. From the oldest step that is still being multiplied to the newest that is being copied, each needs a
buffer of its own. With fewer, a copy overwrites what a product is reading.

An operand that is read to registers in the loop too is named as well: that is how Triton comes to count one too few.
"""

import re

_NAME = r"%[\w#]+"
_ALLOCATED = re.compile(rf"\s*({_NAME}) = ttg\.local_alloc (.*?): .*?!ttg\.memdesc<(\d+)x")
_VIEWED = re.compile(rf"\s*({_NAME}) = ttg\.memdesc_\w+ ({_NAME})")
_PRODUCT = re.compile(rf"ttng\.warp_group_dot ({_NAME}), ({_NAME}), .*isAsync = true.*? : (.*) ->")
_PENDING = re.compile(r"ttng\.warp_group_dot_wait .*pendings = (\d+)")


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())


def _loops(lines: list[str]) -> list[tuple[int, int]]:
    """First and last line of each innermost loop."""
    found = []
    for start, line in enumerate(lines):
        if "scf.for" in line:
            end = next(i for i in range(start + 1, len(lines)) if _depth(lines[i]) == _depth(line))
            if not any("scf.for" in inner for inner in lines[start + 1 : end]):
                found.append((start, end))
    return found


def too_few(ttgir: str) -> list[str]:
    """The faults in the loops of a kernel, a line for each operand; none where there is no `warp_group_dot`."""
    lines = ttgir.splitlines()
    buffers, begin, root = {}, {}, {}  # how many an allocation has, and its line; which allocation a view is of
    for at, line in enumerate(lines):
        if found := _ALLOCATED.match(line):
            name, content, count = found.groups()
            buffers[name], begin[name], root[name] = 1 if content else int(count), at, name
        elif (found := _VIEWED.match(line)) and found[2] in root:
            root[found[1]] = root[found[2]]

    def touched(line: str) -> set[str]:
        return {root[name] for name in re.findall(_NAME, line) if name in root}

    wrong = []
    for start, end in _loops(lines):
        body = lines[start:end]
        products = {at: found for at, line in enumerate(body) if (found := _PRODUCT.search(line))}
        for product in products.values():
            if sum(name in root for name in product.groups()[:2]) != product[3].count("memdesc"):
                wrong.append(f"it is not known where {product[0]} reads")
        for operand in {root[name] for found in products.values() for name in found.groups()[:2] if name in root}:
            # An earlier loop may have views of the same names.
            ahead = sum(
                "global_to_local" in line and operand in touched(line) for line in lines[begin[operand] : start]
            )
            reading: list[tuple[int, bool]] = []  # products under way: of which step, and whether they read the operand
            needed = 0
            for step in range(4):
                for at, line in enumerate(body):
                    writes = operand in touched(line) and ("global_to_local" in line or "ttg.local_alloc" in line)
                    if at in products:
                        reading.append((step, operand in touched(line)))
                    elif found := _PENDING.search(line):
                        reading = reading[max(0, len(reading) - int(found[1])) :]
                    elif writes:
                        needed = max(needed, *(ahead + step - s + 1 for s, reads in reading if reads), ahead)
            if buffers[operand] < needed:
                wrong.append(f"{operand} has {buffers[operand]} buffers, and {needed} are in use")
            if any("ttg.local_load" in line and operand in touched(line) for line in body):
                wrong.append(f"{operand} is read to registers too")
    return wrong
