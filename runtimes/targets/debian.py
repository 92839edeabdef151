"""Programs and libraries out of Debian's packages, unpacked into a folder: no root rights, nothing of the host touched.

apt resolves and downloads with a state of its own, in which nothing is installed, so the packages come with all that
they depend on; ``dpkg-deb`` unpacks them, and no script of theirs is run.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from edgekit.cache import cache_folder
from edgekit.errors import PackagesError, TargetError
from edgekit.files import atomic_folder

MIRROR = "EDGEKIT_DEBIAN_MIRROR"
SUITE = "EDGEKIT_DEBIAN_SUITE"
_KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_LOADERS = {"x86_64": "lib64/ld-linux-x86-64.so.2", "aarch64": "lib/ld-linux-aarch64.so.1"}
# What apt says of a name that the mirror, which it has just read, does not have.
_NO_SUCH = ("Unable to locate package", "has no installation candidate", "Couldn't find any package")
_UPDATE_S, _DOWNLOAD_S, _UNPACK_S = 600, 3600, 300

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Source:
    """Where packages come from.

    Attributes:
        mirror: Address of a Debian mirror.
        suite: The release, ``bookworm``.
    """

    mirror: str
    suite: str


def needed() -> None:
    """Looks for the programs that do the work.

    Raises:
        PackagesError: If one is missing; the remedy says what to do.
    """
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise PackagesError(
                f"{program} is not on the PATH, and packages can't be fetched without it",
                "Set-up takes Debian's packages: run it on Debian or Ubuntu (or in a container of them), and carry the "
                "cache folder (EDGEKIT_CACHE) here.",
            )


def source(release: str = "") -> Source:
    """The mirror and release that this machine's apt is set to, unless EDGEKIT_DEBIAN_MIRROR and _SUITE say otherwise.

    Args:
        release: To take, rather than this machine's.

    Raises:
        PackagesError: If apt knows no Debian release and none is named.
    """
    mirror, suite = os.environ.get(MIRROR, ""), os.environ.get(SUITE, "")
    if mirror and suite:
        return Source(mirror, suite)
    listed = _run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(REPO_URI)|$(CODENAME)", "Created-By: Packages"], 60
    )
    for line in listed.splitlines():
        origin, address, name = line.split("|")
        if origin == "Debian" and not name.endswith(("-security", "-updates", "-backports")):
            return Source(mirror or address, suite or release or name)
    raise PackagesError(
        "apt on this machine is not set to a Debian release",
        f"Name one: {MIRROR}=ADDRESS of a mirror (debian.org/mirror/list) and {SUITE}=bookworm; its keys come with the "
        "package debian-archive-keyring.",
    )


def host_architecture() -> str:
    """Debian's name of this machine's architecture."""
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise PackagesError(f"there is no set-up for {machine} as a host", f"Known: {', '.join(_ARCHITECTURES)}.")
    return _ARCHITECTURES[machine]


def unpack(
    packages: Sequence[str],
    architecture: str,
    folder: Path,
    progress: Progress,
    *,
    suite: str = "",
    links: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Makes ``folder`` hold packages with all that they depend on.

    Killed, the next call goes on with what was downloaded; the folder takes its name when it is whole.

    Args:
        packages: Debian's names.
        architecture: ``arm64``, ``armhf``, ``amd64``.
        folder: Where; replaced if it exists.
        progress: Told how far it has come.
        suite: The Debian release; this machine's if empty.
        links: What the packages' scripts would link: place in the folder, and what it points to.

    Raises:
        PackagesError: If apt is missing or can't reach its mirror, with apt's own words.
        TargetError: If the mirror was reached and has no package of that name.
    """
    needed()
    where = source(suite)
    work = cache_folder() / "downloads" / f"{folder.name}-{architecture}"
    options = _private(where, architecture, work)
    title = f"fetching {', '.join(packages)} ({architecture})"
    progress(0, 1, title)
    _apt([*options, "update"], _UPDATE_S)
    _apt([*options, "--yes", "--download-only", "install", *packages], _DOWNLOAD_S)
    archives = sorted((work / "cache" / "archives").glob("*.deb"))
    with atomic_folder(folder) as partial:
        for position, archive in enumerate(archives):
            progress(position, len(archives), title)
            _run(["dpkg-deb", "--extract", str(archive), str(partial)], _UNPACK_S)
        for place, goal in links.items():
            (partial / place).symlink_to(goal)
    progress(len(archives), len(archives), title)
    shutil.rmtree(work, ignore_errors=True)


def host_program(folder: Path, program: str) -> list[str]:
    """The words that start a program of an unpacked folder with the libraries of that folder.

    Its own loader is named, so it fits a host with older or other libraries, and no variable reaches its children.
    """
    machine = platform.machine()
    places = [folder / part / f"{machine}-linux-gnu" for part in ("lib", "usr/lib")]
    # Android's tools keep theirs in a folder beside.
    libraries = ":".join(map(str, (*places, places[1] / "android")))
    return [str(folder / _LOADERS[machine]), "--library-path", libraries, str(folder / program)]


def _private(where: Source, architecture: str, work: Path) -> list[str]:
    for part in ("state/lists/partial", "cache/archives/partial"):
        (work / part).mkdir(parents=True, exist_ok=True)
    (work / "status").touch()
    # A mirror without the keys' package (another distribution) still has apt's own trusted keys.
    signed = f"[signed-by={_KEYS}] " if os.path.isfile(_KEYS) else ""
    (work / "sources.list").write_text(f"deb {signed}{where.mirror} {where.suite} main\n", encoding="utf-8")
    settings = {
        "APT::Architecture": architecture, "APT::Architectures": architecture, "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "root", "APT::Update::Error-Mode": "any", "Acquire::Languages": "none",
        "Acquire::Retries": "3", "Dir::Etc::sourcelist": str(work / "sources.list"), "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferences": "/dev/null", "Dir::Etc::preferencesparts": "/dev/null",
        "Dir::State": str(work / "state"), "Dir::State::status": str(work / "status"), "Dir::Cache": str(work / "cache"),
        "Debug::NoLocking": "true",
    }  # fmt: skip
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def _apt(arguments: Sequence[str], timeout_s: float) -> str:
    return _run(["apt-get", "--quiet", *arguments], timeout_s)


def _run(words: Sequence[str], timeout_s: float) -> str:
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise PackagesError(
            f"{words[0]} did not finish in {timeout_s:g} s", "Is the network up? The same command goes on."
        ) from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith(("E:", "dpkg-deb: error"))]
        last = said[0] if said else (done.stderr.strip().splitlines() or ["nothing"])[-1]
        what = f"{words[0]} failed with exit code {done.returncode}: {last}"
        if any(text in done.stderr for text in _NO_SUCH):
            raise TargetError(what, f"The mirror was reached and its release lacks it: {SUITE} names another.")
        raise PackagesError(
            what,
            f"Is the network up and the mirror right ({MIRROR} names another)? The same command goes on.",
        )
    return done.stdout
