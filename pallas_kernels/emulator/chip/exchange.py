"""What lanes of a warp exchange: elect, shfl, vote.

PTX ISA: "Parallel Synchronization and Communication Instructions" (elect.sync, vote.sync) and "Data Movement" (shfl.sync). Lanes named by a
membership mask are taken to be all that live, and must come together. Not modelled: activemask, match, redux.
"""

import numpy as np

from pallas_kernels.emulator.ptx.handlers import LANES, handles, whole_warp

ALL = np.arange(LANES)


@handles("elect")
def _elect(program, i):
    (lane, predicate), _ = i.operands
    d, p = program.dest(lane), program.dest(predicate)

    def run(w, m):
        whole_warp(m, w)
        first = int(np.argmax(w.live))
        if d is not None:
            w.R[d] = np.full(LANES, first, np.uint32)
        w.R[p] = ALL == first

    return run


@handles("shfl")
def _shuffle(program, i):
    target, source, lane, clamp, _ = i.operands
    d, p = (program.dest(target[0]), program.dest(target[1])) if isinstance(target, tuple) else (program.dest(target), None)
    s, b, c = (program.source(o, np.uint32) for o in (source, lane, clamp))
    mode = next(word for word in i.op if word in ("idx", "bfly", "up", "down"))
    constant = isinstance(lane, int) and isinstance(clamp, int)

    known: dict = {}  # of lanes and clamps that are constants

    def run(w, m):
        whole_warp(m, w)
        R = w.R
        key = id(R[b]), id(R[c])
        found = known.get(key)
        if found is None or found[2] is not R[b] or found[3] is not R[c]:
            found = *_partners(mode, R[b].astype(np.int64) & 31, R[c].astype(np.int64)), R[b], R[c]
            if constant:
                known[key] = found
        j, good = found[:2]
        R[d] = np.where(good, R[s][j], R[s])
        if p is not None:
            R[p] = good

    return run


def _partners(mode: str, by, limit):
    """Of each lane, whose value it gets, and whether that is in its segment."""
    segment, most = (limit >> 8) & 31, limit & 31
    least, top = ALL & segment, (ALL & segment) | (most & ~segment)
    if mode == "idx":
        j = least | (by & ~segment)
    else:
        j = ALL ^ by if mode == "bfly" else ALL - by if mode == "up" else ALL + by
    return np.clip(j, 0, 31), j >= top if mode == "up" else j <= top


@handles("vote", "activemask", "redux", "match")
def _vote(program, i):
    target, source = i.operands[:2] if len(i.operands) > 1 else (i.operands[0], None)
    d = program.dest(target)
    if i.op[0] == "vote":
        p = program.source(source, bool)
        mode = next(word for word in i.op if word in ("any", "all", "uni", "ballot"))

        def run(w, m):
            q = w.R[p] if m is None else w.R[p] & m
            lanes = np.ones(LANES, bool) if m is None else m
            if mode == "ballot":
                w.R[d] = np.full(LANES, int((q * (np.uint64(1) << ALL.astype(np.uint64))).sum()), np.uint32)
            else:
                w.R[d] = np.full(LANES, {"any": q.any(), "all": q[lanes].all(), "uni": q[lanes].all() or not q.any()}[mode])

        return run
    raise NotImplementedError
