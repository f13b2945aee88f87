"""Disk images of small Debian machines, made by debootstrap and kept in a cache folder.

An image depends on nothing of the product: it has Python, an init system and
the agent. It is made again when a file that it is made from has changed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SUITES = {(3, 11): "bookworm", (3, 13): "trixie"}
"""Debian's release by the version of its Python: the bundle is made by this Python and has to fit the machine's."""

INITS = {
    "systemd": ("systemd-sysv",),
    "sysvinit": ("sysvinit-core", "orphan-sysvinit-scripts"),
}
"""Init systems, and the packages that bring each."""

PACKAGES = (
    "e2fsprogs", "ifupdown", "initramfs-tools", "iproute2", "kmod", "linux-image-cloud-amd64", "procps", "python3",
    "python3-venv", "udev", "zstd",
)  # fmt: skip
MODULES = ("ext4", "virtio_blk", "virtio_console", "virtio_net", "virtio_pci")
_UNUSED_MODULES = (
    "aesni_intel", "ata_generic", "ata_piix", "button", "configfs", "crc32_pclmul", "cryptd", "dm_mod", "evdev",
    "floppy", "fuse", "ghash_clmulni_intel", "i2c_piix4", "intel_rapl_common", "intel_rapl_msr", "libata", "loop",
    "parport_pc", "pcspkr", "psmouse", "scsi_mod", "serio_raw", "sha256_ssse3", "sha512_ssse3",
)  # fmt: skip
DISK_BYTES = 1536 * 1024**2
"""Small, so that it is quickly full."""

AGENT = Path(__file__).with_name("guest_agent.py")
PROGRAMS = ("debootstrap", "mkfs.ext4", "qemu-img", "qemu-system-x86_64")
"""Debian's packages debootstrap, e2fsprogs, qemu-utils and qemu-system-x86."""

_UNIT = """\
[Unit]
Description=Carries out commands of the host
[Service]
ExecStart=/usr/bin/python3 /usr/local/sbin/guest-agent
Restart=always
# What it starts must outlive it.
KillMode=process
[Install]
WantedBy=multi-user.target
"""
_NOT_NEEDED = (
    "e2scrub_reap.service",
    "e2scrub_all.timer",
    "getty.target",
    "systemd-binfmt.service",
    "systemd-logind.service",
)
_FILES = {
    "etc/fstab": "/dev/vda / ext4 defaults 0 1\n",
    "etc/hostname": "machine\n",
    "etc/hosts": "127.0.0.1 localhost machine\n",
    # eth0 leads to the host; it may come late. eth1 is a test's own.
    "etc/network/interfaces": (
        "auto lo\niface lo inet loopback\nallow-hotplug eth0\niface eth0 inet static\n    address 10.0.2.15/24\n"
    ),
    "etc/initramfs-tools/modules": "".join(f"{module}\n" for module in MODULES),
    # Loading drivers of what is not used takes seconds of each boot.
    "etc/modprobe.d/machine.conf": "".join(f"install {module} /bin/true\n" for module in _UNUSED_MODULES),
    "etc/initramfs-tools/conf.d/small": "MODULES=list\n",
}


@dataclass(frozen=True, slots=True)
class Image:
    """A machine's disk, and the kernel that boots it."""

    init: str
    folder: Path

    @property
    def disk(self) -> Path:
        """A raw disk without partitions; never written to."""
        return self.folder / "disk.raw"

    @property
    def kernel(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.folder / "initrd"


def missing() -> str:
    """Return what keeps this host from making and running machines; empty when nothing does."""
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    if absent:
        return f"{', '.join(absent)} not found: apt-get install debootstrap e2fsprogs qemu-system-x86 qemu-utils"
    if sys.version_info[:2] not in SUITES:
        known = " or ".join(f"{major}.{minor}" for major, minor in SUITES)
        return f"no Debian release has Python {sys.version_info[0]}.{sys.version_info[1]}: use {known}"
    if os.geteuid() != 0:
        return "debootstrap needs root"
    return ""


def image(init: str, cache: Path) -> Image:
    """Return the image with this init system; make it first when the cache has none, which takes two minutes."""
    suite = SUITES[sys.version_info[:2]]
    source = hashlib.sha256(Path(__file__).read_bytes() + AGENT.read_bytes()).hexdigest()[:12]
    made = Image(init, cache / f"{suite}-{init}-{source}")
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache):
        if not made.folder.exists():
            with tempfile.TemporaryDirectory(prefix="making-", dir=cache) as work:
                _make(Path(work), suite, init, cache / "packages")
                for old in cache.glob(f"{suite}-{init}-*"):
                    shutil.rmtree(old)
                (Path(work) / "done").rename(made.folder)
    return made


def _make(work: Path, suite: str, init: str, packages: Path) -> None:
    tree, done = work / "tree", work / "done"
    packages.mkdir(exist_ok=True)
    done.mkdir()
    include = ",".join((*PACKAGES, *INITS[init]))
    _run("debootstrap", "--variant=minbase", f"--include={include}", f"--cache-dir={packages.absolute()}", suite, tree)
    for name, content in _FILES.items():
        (tree / name).write_text(content)
    shutil.copy(AGENT, tree / "usr/local/sbin/guest-agent")
    if init == "systemd":
        (tree / "etc/systemd/system/guest-agent.service").write_text(_UNIT)
        _run("chroot", tree, "systemctl", "enable", "guest-agent.service")
        # A boot in software is short of time, and nobody logs in.
        _run("chroot", tree, "systemctl", "mask", *_NOT_NEEDED)
    else:
        inittab = tree / "etc/inittab"
        kept = [line for line in inittab.read_text().splitlines() if "getty" not in line]
        inittab.write_text("\n".join([*kept, "ga:2345:respawn:/usr/bin/python3 /usr/local/sbin/guest-agent", ""]))
    (version,) = (path.name for path in (tree / "lib/modules").iterdir())
    _run("chroot", tree, "mkinitramfs", "-o", "/initrd", version)
    (tree / "initrd").rename(done / "initrd")
    (tree / f"boot/vmlinuz-{version}").rename(done / "vmlinuz")
    for path in (tree / "boot").glob("initrd.img*"):
        path.unlink()
    for package in (tree / "var/cache/apt/archives").glob("*.deb"):
        package.unlink()
    # Modules of one's own Python are compiled once here and not at every boot's first import.
    _run("chroot", tree, "python3", "-m", "compileall", "-q", "/usr/lib/python3")
    disk = done / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(DISK_BYTES)
    _run("mkfs.ext4", "-q", "-F", "-L", "machine", "-d", tree, disk)


def _run(*words: str | Path) -> None:
    environ = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    environ["PATH"] += ":/usr/sbin:/sbin:/usr/bin:/bin"
    done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{words[0]} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: two test sessions may want the same image."""
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
