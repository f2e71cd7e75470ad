"""The qualifiers that each opcode may have (`global` and `v4` of `ld.global.v4.b32`); others may change its meaning.

The decoder heeds these or may pass over them.
"""

import re

_ROUNDING = "rn rz rm rp"
_SPACES = "global const shared shared::cta shared::cluster local param param::entry param::func"
_CACHE = (
    "ca cg cs lu cv wb wt nc L1::evict_normal L1::evict_unchanged L1::evict_first L1::evict_last L1::no_allocate"
    " L2::evict_normal L2::evict_first L2::evict_last L2::cache_hint L2::64B L2::128B L2::256B"
)
_ORDER = "weak relaxed acquire release acq_rel sc volatile cta cluster gpu sys"
_MEMORY = f"{_SPACES} {_CACHE} {_ORDER} v2 v4 v8"
_REDUCTIONS = "add min max and or xor exch cas inc dec"
_FLOAT = f"{_ROUNDING} ftz sat"
_FUNCTION = f"approx full {_ROUNDING} ftz"
_TOGETHER = "sync aligned"
_QUALIFIERS = {
    **dict.fromkeys(("add", "sub"), f"{_FLOAT} cc"),
    **dict.fromkeys(("addc", "subc"), "cc"),
    **dict.fromkeys(("mul", "mad", "madc"), f"{_FLOAT} lo hi wide cc"),
    "fma": f"{_FLOAT} relu",
    **dict.fromkeys(("min", "max"), "NaN ftz"),
    **dict.fromkeys(("abs", "neg"), "ftz"),
    **dict.fromkeys(("div", "rcp", "sqrt", "rsqrt", "ex2", "lg2", "tanh", "sin", "cos"), _FUNCTION),
    "bfind": "shiftamt",
    "shf": "l r wrap clamp",
    "dp2a": "lo hi",
    "prmt": "f4e b4e rc8 ecl ecr rc16",
    "testp": "finite infinite number notanumber normal subnormal",
    **dict.fromkeys(("setp", "set"), "eq ne lt le gt ge lo ls hi hs equ neu ltu leu gtu geu num nan and or xor ftz"),
    "cvt": f"{_FLOAT} rna rni rzi rmi rpi satfinite relu",
    "cvta": f"to {_SPACES}",
    "mapa": "shared::cluster",
    "isspacep": _SPACES,
    **dict.fromkeys(("ld", "ldu", "st"), _MEMORY),
    **dict.fromkeys(("atom", "red"), f"{_MEMORY} {_REDUCTIONS} noftz"),
    "shfl": "sync up down bfly idx",
    "vote": "sync all any uni ballot",
    "match": "sync all any",
    "redux": "sync add min max and or xor",
    "elect": "sync",
    **dict.fromkeys(("bra", "ret", "exit", "call"), "uni"),
    "brx": "idx uni",
    "mma": f"{_TOGETHER} row col satfinite",
    **dict.fromkeys(("ldmatrix", "stmatrix"), f"{_TOGETHER} m8n8 x1 x2 x4 trans shared shared::cta"),
    "wgmma": f"{_TOGETHER} satfinite fence commit_group wait_group mma_async",
    "cp": (
        f"async bulk tensor 1d 2d 3d 4d 5d tile commit_group wait_group wait_all read mbarrier arrive noinc prefetch"
        f" reduce bulk_group mbarrier::complete_tx::bytes multicast::cluster noftz L2 {_REDUCTIONS} {_MEMORY}"
    ),
    "tensormap": (
        "replace tile global_address rank box_dim global_dim global_stride element_stride elemtype interleave_layout"
        f" swizzle_mode fill_mode b1024 cp_fenceproxy tensormap::generic {_TOGETHER} {_SPACES} {_ORDER}"
    ),
    "mbarrier": (
        f"init inval arrive expect_tx complete_tx noComplete try_wait test_wait parity pending_count {_SPACES} {_ORDER}"
    ),
    **dict.fromkeys(("bar", "barrier"), f"{_TOGETHER} warp cluster cta arrive wait red popc and or {_ORDER}"),
    "fence": f"proxy alias async tensormap::generic mbarrier_init {_ORDER} {_SPACES}",
    "setmaxnreg": f"{_TOGETHER} inc dec",
    "membar": "cta gl sys",
    "griddepcontrol": "wait launch_dependents",
}
_KNOWN = {base: frozenset(qualifiers.split()) for base, qualifiers in _QUALIFIERS.items()}
_ANY = ("prefetch", "prefetchu", "discard", "applypriority", "createpolicy", "pmevent")  # passed over as a whole
_SHAPE = re.compile(r"m\d+n\d+k\d+$")


def unknown_qualifier(base: str, qualifiers: tuple[str, ...], types: tuple[str, ...]) -> str | None:
    """The first qualifier of an opcode, its types aside, that is not known for it; None if all are."""
    known = _KNOWN.get(base, frozenset())
    for word in qualifiers:
        if word not in known and word not in types and base not in _ANY:
            if base in ("mma", "wgmma") and _SHAPE.match(word):
                continue
            return word
    return None
