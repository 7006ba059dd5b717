"""Flags that entry points share: the mesh, and being one of several processes of it.

    python -m gptoss_jax.chat --mesh=1x8 "..."                                    8 devices of this machine
    srun -N 2 --ntasks-per-node=1 python -m gptoss_jax.chat --mesh=1x16 --distributed "..."

Processes are started by SLURM, Open MPI, Kubernetes or by hand, on every host the same command; `jax.distributed` finds the others.
"""

from typing import TYPE_CHECKING

from absl import flags

from gptoss_jax.quoting import quoted

if TYPE_CHECKING:
    import jax


def define_flags(to: flags.FlagValues = flags.FLAGS) -> None:
    """Adds the flags to a set of them."""
    flags.DEFINE_string("mesh", None, "Devices as DATAxMODEL, such as 1x8: replicas, and devices that share each; default one device.", to)
    flags.DEFINE_bool("distributed", False, "Be one of several processes, which SLURM, Open MPI or Kubernetes started.", to)
    flags.DEFINE_string("coordinator_address", None, "Host and port of process 0, where no such launcher is; implies --distributed.", to)
    flags.DEFINE_integer("num_processes", None, "How many processes there are, likewise.", lower_bound=1, flag_values=to)
    flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0, likewise.", lower_bound=0, flag_values=to)


def start(given: flags.FlagValues = flags.FLAGS) -> "jax.sharding.Mesh | None":
    """Joins the other processes, if there are to be any, and makes the mesh; None where no flag asks for one. Call it before JAX starts.

    Raises:
        ValueError: flags contradict one another, no launcher is found, or there are not the devices that the mesh needs.
    """
    explicit = (given.coordinator_address, given.num_processes, given.process_id)
    if any(value is not None for value in explicit) and None in explicit:
        raise ValueError("--coordinator_address, --num_processes and --process_id go together; give all three, or --distributed alone.")
    wanted = None if given.mesh is None else shape(given.mesh)
    if given.distributed or given.coordinator_address:
        if wanted is None:
            raise ValueError("several processes need to know how they share the model; give --mesh=DATAxMODEL, such as --mesh=1x16.")
        _join(*explicit)
    if wanted is None:
        return None
    from gptoss_jax.parallel import sharding

    return sharding.mesh(*wanted)


def shape(text: str) -> tuple[int, int]:
    """Data and model of "DATAxMODEL". Raises ValueError where the text is something else."""
    data, cross, model = text.partition("x")
    if len(text) > 40 or not (cross and data.isdecimal() and model.isdecimal() and int(data) and int(model)):
        raise ValueError(f"--mesh must be DATAxMODEL, two positive numbers; got {quoted(text)}; 1x8 is one replica on eight devices.")
    return int(data), int(model)


def _join(address: str | None, count: int | None, number: int | None) -> None:
    import jax

    try:
        jax.distributed.initialize(address, count, number)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"joining the other processes failed: {str(error).splitlines()[0]}; start them with srun or mpirun, or give "
            "--coordinator_address, --num_processes and --process_id."
        ) from error
