"""The board's management controller over IPMI (DCMI power reading): the whole node at its supplies."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

from compressor.energy.domain import Domain, Probe, Provenance, Quantity, Sample, Scope
from compressor.energy.host import ROOT
from compressor.energy.meter import now_ns
from compressor.errors import EnergyError

COMMAND = ("ipmitool", "dcmi", "power", "reading")
PERIOD_S = 1.0
CEILING_W = 20_000.0
TIMEOUT_S = 3.0

Runner = Callable[[], str]


class IpmiMeter:
    """``ipmitool dcmi power reading``.

    Args:
        root: root of ``/dev``.
        run: returns what the command prints; runs it by default.
    """

    name = "ipmi"
    label = "IPMI DCMI"

    def __init__(self, root: Path = ROOT, run: Runner | None = None) -> None:
        self._root = root
        self._run = run_ipmitool if run is None else run

    def probe(self) -> Probe:
        """Whether a controller is there and answers with a power."""
        if not any((self._root / "dev" / name).exists() for name in ("ipmi0", "ipmi/0", "ipmidev/0")):
            return Probe("absent", "no IPMI device", "sudo modprobe ipmi_devintf ipmi_si")
        try:
            (sample,) = self.read()
        except EnergyError as error:
            refused = "permission" in error.message.lower() or "could not open device" in error.message.lower()
            remedy = "sudo setfacl -m u:$USER:rw /dev/ipmi0" if refused else error.hint
            return Probe("permission" if refused else "error", str(error.message), remedy)
        if sample.raw == 0:
            return Probe("frozen", "the controller reads 0 W")
        return Probe("ok", f"node power, {sample.raw} W now")

    def domains(self) -> tuple[Domain, ...]:
        """One sensor, in whole watts."""
        return (
            Domain(
                id="dcmi",
                scope=Scope.NODE_WALL_AC,
                provenance=Provenance.DEVICE_POWER_INTEGRATED,
                quantity=Quantity.POWER,
                unit=Fraction(1),
                period_s=PERIOD_S,
                ceiling_w=CEILING_W,
            ),
        )

    def read(self) -> tuple[Sample, ...]:
        """The instantaneous reading."""
        text = self._run()
        found = re.search(r"Instantaneous power reading:\s+(\d+)\s+Watts", text)
        if found is None:
            raise EnergyError(f"ipmitool gave no power: {text.strip()[:80]!r}")
        return (Sample("dcmi", now_ns(), int(found.group(1))),)


def run_ipmitool() -> str:
    """What the command prints.

    Raises:
        EnergyError: it is not installed, fails, or does not answer in time.
    """
    # Here, since few machines have a controller and every import of the package would pay for these.
    import shutil
    import subprocess

    if shutil.which(COMMAND[0]) is None:
        raise EnergyError("ipmitool is not installed", hint="sudo apt-get install ipmitool")
    try:
        done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    except subprocess.TimeoutExpired as error:
        raise EnergyError(f"ipmitool did not answer within {TIMEOUT_S:g} s") from error
    except subprocess.CalledProcessError as error:
        raise EnergyError(f"ipmitool failed: {error.stderr.strip()[:200]}") from error
    return done.stdout
