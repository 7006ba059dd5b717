"""What a kernel does with global memory before it is its turn: an emulated launch, watched up to each warp's griddepcontrol.wait."""

from pallas_kernels.emulator import capture, launch
from pallas_kernels.emulator.chip import access, tma
from pallas_kernels.emulator.ptx.program import Program


class _Watched(Program):
    def __init__(self, kernel, seen: set):
        super().__init__(kernel)
        self._seen, self._waited = seen, set()
        for i, instruction in enumerate(self.instructions):
            self.code[i] = self._watching(instruction, self.code[i])

    def _watching(self, i, run):
        if i.op[:2] == ("griddepcontrol", "wait"):
            return lambda w, m: (self._waited.add(w), run(w, m))[1]
        if i.op[:2] == ("griddepcontrol", "launch_dependents"):
            return lambda w, m: (self._seen.add(("after" if w in self._waited else "before", "next")), run(w, m))[1]
        if i.op[0] == "cp" and "bulk" in i.op:
            return lambda w, m: self._copy(w, m, run)
        if i.op[0] in ("ld", "st", "atom", "red") and access._access(self, i)[0] in ("global", "generic"):
            return self._access(i, run)
        return run

    def _copy(self, w, m, run):
        flight = w.block.machine.in_flight
        before = len(flight)
        answer = run(w, m)
        for one in flight[before:]:
            if w not in self._waited and one.region is not None:
                self._seen.add(("read" if isinstance(one, tma.Load) else "wrote", one.region.name))
        return answer

    def _access(self, i, run):
        space, _, _, size = access._access(self, i)
        address = self.address(i.operands[0] if i.op[0] in ("st", "red") else i.operands[1])

        def watch(w, m):
            if w not in self._waited:
                at = address(w.R)
                region, _ = access.locate(w, space, at if m is None else at[m], size)
                if not region.name.startswith("shared"):
                    self._seen.add(("read" if i.op[0] == "ld" else "wrote", region.name))
            return run(w, m)

        return watch


def seen(fn, *args) -> tuple[str, set[int]]:
    """For a function of one kernel: whether the next launch is set up "before" or "after" the wait, and the kernel's operands read before.

    Fails where one writes before, or where a warp does not wait.
    """
    noted, waits = set(), []

    def one(key, operands, shapes, aliases):
        program, its_host, _ = launch.load(kernels[key])
        watched = _Watched(program.kernel, noted)
        done = launch.launch(kernels[key], operands, shapes, aliases, seed=1, policy="late", change=lambda *_: (watched, its_host))
        assert not done.reports, done.reports
        waits.append((len(watched._waited), done.warps))
        return done.outputs

    go, kernels = capture.capture(fn, *args, launch=one)
    go()
    ((waited, warps),) = waits
    assert waited == warps, f"{waited} of {warps} warps wait for the launch before"
    assert not [name for kind, name in noted if kind == "wrote"], noted
    (turn,) = [kind for kind, name in noted if name == "next"]
    return turn, {int(name.split()[1]) for kind, name in noted if kind == "read"}
