"""What a Hopper can do: the figures that predicted times rest on, and where each is from. Knows no jax.

Sources, none of them measured by this project:

  [NV]    NVIDIA, "H100 Tensor Core GPU Architecture" and the data sheets of H100 SXM and H200: 132 multiprocessors, four schedulers each
          that issue an instruction a cycle, 989.4 Tflop/s of dense bfloat16 at 1,830 MHz, 3.35 and 4.8 TB/s of memory.
  [NV-CC] NVIDIA, "CUDA C++ Programming Guide", throughput of native arithmetic instructions, compute capability 9.0: results a cycle and
          multiprocessor, 128 of float32 and 16 of the special functions; 64 of conversions. Shared memory: 32 banks of 4 bytes a cycle.
  [STUDY] "CUDA Performance Study - NVIDIA H100 SXM5", a public repository's README with micro-benchmarks at 1.98 GHz: a chased pointer
          takes 28.6 cycles in shared memory, 259.9 in the L2 cache, 570.5 in memory; dependent arithmetic in a loop 29 cycles, of which the
          loop is most. Copies that live in the L2 cache ran at 3.6 TB/s there, and one multiprocessor alone copied 67 GB/s.
  [HAZY]  Hazy Research, "Look Ma, No Bubbles!" (27 May 2025): a launch within a CUDA graph costs about 1.3 us on an H100; their one
          kernel for a whole model reads at 78 % of the memory's bandwidth.
  [JAX]   jax's documentation, "Collective matrix multiplication": its Hopper kernel multiplies float16 [1024, 4096] by [4096, 4096] in
          about 43 us on an H100.
  [ASSUMED] Nobody's figure: what a kernel author would guess. Errors of these are errors of short kernels.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One GPU.

    Attributes:
      name: such as "h200".
      bandwidth: bytes a second that reads reach, of memory: nine tenths of the data sheet's [ASSUMED; copies of others reach 85 to 92 %].
      hertz: clock of the multiprocessors under such load [NV: boost].
      multiprocessors: [NV]
      l2_bandwidth: bytes a second from the L2 cache; CALIBRATED: [STUDY] has 3.6e12 of a plain copy, but [JAX] needs 9.4e12, many
        multiprocessors reading the same tiles at a time.
      l2_bytes: that it keeps between launches [NV: 50 MB].
      port: bytes a cycle that a multiprocessor takes from the L2 cache [NV].
      memory_latency: cycles of a load that misses all caches [STUDY].
      l2_latency: cycles of one that hits the L2 cache [STUDY].
      shared_latency: cycles of one from shared memory [STUDY].
      tma: cycles that a bulk copy takes more than a load [ASSUMED].
      launch: seconds between two dependent kernels of a CUDA graph in which nothing runs [HAZY].
      turn: part of `launch` that is left where a kernel is set up before its turn (programmatic dependent launch) [ASSUMED].
      start: cycles from a block's start to its first instruction, and from its last one to the next block's start [ASSUMED].
    """

    name: str
    bandwidth: float
    hertz: float = 1.755e9
    multiprocessors: int = 132
    l2_bandwidth: float = 10e12
    l2_bytes: int = 50 * 2**20
    port: float = 64.0
    memory_latency: float = 600.0
    l2_latency: float = 260.0
    shared_latency: float = 29.0
    tma: float = 250.0
    launch: float = 1.3e-6
    turn: float = 0.5
    start: float = 300.0

    @property
    def cycle(self) -> float:
        """Seconds."""
        return 1 / self.hertz


CHIPS = {"h100": Chip("h100", bandwidth=0.9 * 3.35e12), "h200": Chip("h200", bandwidth=0.9 * 4.8e12)}

SCHEDULERS = 4
SPECIAL = 8.0  # cycles that a warp's special functions hold their unit: 32 lanes, 4 results a cycle and scheduler [NV-CC]
CONVERT = 2.0  # cycles that a warp's conversions hold theirs [NV-CC]
WAVEFRONT = 128  # bytes that shared memory gives in a cycle [NV-CC]


def wgmma_cycles(columns: int, *, from_registers: bool) -> float:
    """Cycles that a wgmma m64n`columns`k16 of 16-bit floats holds a multiprocessor's tensor cores.

    They multiply 2,048 pairs a cycle [NV]: columns / 2. An operand A in shared memory is read at 128 bytes a cycle, and B with it; from
    registers a few columns cost no less than 16 cycles [ASSUMED].
    """
    b = 32 * columns / WAVEFRONT
    return max(columns / 2, 16.0, 0.0 if from_registers else 16 + b)
