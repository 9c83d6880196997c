"""The systemd units of a root install, rendered from the policy: what they say is what a job may do.

A job runs in `misrc-PROFILE@JOB.service`, under an account that owns nothing else, with the rights named here. The
profiles differ by what a program may need: `strict` for ordinary programs, `hpc` for those that need devices (GPU,
InfiniBand), namespaces or unusual system calls. `-net` after the profile's name: the policy allows this program the
network. Directives: systemd.exec(5), systemd.resource-control(5) of systemd 252.

Not covered: jobs of one site run under one account, so a job can see and signal another job's processes.
"""

from __future__ import annotations

import re
from typing import Dict, List, Tuple

from .agent import CREDENTIAL, PROXY_CREDENTIAL, AgentConfig
from .policy import Policy, ProgramRule

GATE_ACCOUNT = "misrc"
JOB_ACCOUNT = "misrc-job"
RUNNER_SOCKET = "/run/misrc/runner.sock"
RUN_FOLDER = "/run/misrc/jobs"
LEDGER_FOLDER = "/var/lib/misrc/ledger"
AGENT_UNIT = "misrc-agent.service"
AGENT_FOLDER = "/var/lib/misrc/agent"
SUPERVISOR = "misrc-supervisor"
# The root-owned folder of a job in which its unit takes the marker that lets a program start only once.
GUARD = "guard"
_PATH = re.compile(r"/[A-Za-z0-9._/+@-]+", re.ASCII)

Lines = List[Tuple[str, str]]

# What every unit of ours gives up.
_COMMON: Lines = [
    ("NoNewPrivileges", "yes"),
    ("ProtectSystem", "strict"),
    ("ProtectHome", "yes"),
    ("PrivateTmp", "yes"),
    ("ProtectClock", "yes"),
    ("ProtectHostname", "yes"),
    ("ProtectKernelTunables", "yes"),
    ("ProtectKernelModules", "yes"),
    ("ProtectKernelLogs", "yes"),
    ("ProtectControlGroups", "yes"),
    ("RestrictRealtime", "yes"),
    ("LockPersonality", "yes"),
    ("RemoveIPC", "yes"),
    ("KeyringMode", "private"),
    ("SystemCallArchitectures", "native"),
    ("UMask", "0077"),
]
_STRICT: Lines = [
    ("RestrictSUIDSGID", "yes"),
    ("PrivateDevices", "yes"),
    ("DevicePolicy", "closed"),
    ("PrivateUsers", "yes"),
    ("ProtectProc", "invisible"),
    ("RestrictNamespaces", "yes"),
    ("SystemCallFilter", "@system-service"),
    ("SystemCallFilter", "~@privileged @mount @debug @cpu-emulation @obsolete @raw-io @reboot @swap @module"),
    ("SystemCallErrorNumber", "EPERM"),
]
_HPC: Lines = [
    ("RestrictSUIDSGID", "yes"),
    ("ProtectProc", "invisible"),
    ("SystemCallFilter", "~@reboot @swap @module @raw-io @clock @obsolete"),
    ("SystemCallErrorNumber", "EPERM"),
]
_ROOT_SERVICE: Lines = [
    ("PrivateDevices", "yes"),
    ("PrivateNetwork", "yes"),
    ("RestrictAddressFamilies", "AF_UNIX"),
    ("RestrictNamespaces", "yes"),
    ("MemoryDenyWriteExecute", "yes"),
    ("CapabilityBoundingSet", "CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_FSETID CAP_SYS_ADMIN"),
    ("SystemCallFilter", "@system-service"),
]


def unit_of(rule: ProgramRule, job: str) -> str:
    """The unit in which a program of this rule runs for this job."""
    return f"misrc-{_kind(rule)}@{job}.service"


def _kind(rule: ProgramRule) -> str:
    return rule.profile + ("-net" if rule.network == "allow" else "")


def render_units(policy: Policy, code: str, python: str = "/usr/bin/python3") -> Dict[str, str]:
    """Every unit file by name. `code` is the folder of the installed program."""
    for path in (policy.work_root, code, python):
        if not _PATH.fullmatch(path):
            raise ValueError(f"{path!r} has a character that a unit file cannot carry")
    command = f"{python} -I -S {code}"
    units = {
        "misrc-runner.socket": _render_socket(),
        "misrc-runner.service": _render_runner(policy, command),
        f"{SUPERVISOR}@.service": _render_supervisor(policy, command),
        "misrc-recover.service": _render_recover(command),
        "misrc-sweep.service": _render_sweep(policy, command),
        "misrc-sweep.timer": _render_timer(),
    }
    for rule in policy.programs.values():
        units[f"misrc-{_kind(rule)}@.service"] = _render_job(policy, command, rule)
    return units


def render_agent_unit(policy: Policy, config: AgentConfig, code: str, python: str = "/usr/bin/python3") -> str:
    """The agent's unit: it may write the work root and its own folder, reach the network and the runner's socket.

    Programs run in units of their own, which know nothing of the token: systemd alone reads its file, as root.
    """
    for path in (policy.work_root, code, python, config.token or code, config.proxy_credentials or code):
        if not _PATH.fullmatch(path):
            raise ValueError(f"{path!r} has a character that a unit file cannot carry")
    secrets = ((CREDENTIAL, config.token), (PROXY_CREDENTIAL, config.proxy_credentials))
    credentials: Lines = [("LoadCredential", f"{name}:{path}") for name, path in secrets if path is not None]
    return _render(
        (
            "Unit",
            [
                ("Description", "misrc: asks MInt's API server for work"),
                ("Wants", "network-online.target misrc-runner.socket"),
                ("After", "network-online.target misrc-runner.socket"),
            ],
        ),
        (
            "Service",
            [
                ("Type", "exec"),
                ("User", GATE_ACCOUNT),
                ("Group", GATE_ACCOUNT),
                ("ExecStart", f"{python} -I -S {code} agent"),
                ("Restart", "always"),
                ("RestartSec", "5"),
                *credentials,
                *_COMMON,
                ("RestrictSUIDSGID", "yes"),
                ("PrivateDevices", "yes"),
                ("DevicePolicy", "closed"),
                ("PrivateUsers", "yes"),
                ("ProtectProc", "invisible"),
                ("ProcSubset", "pid"),
                ("RestrictNamespaces", "yes"),
                ("MemoryDenyWriteExecute", "yes"),
                ("CapabilityBoundingSet", ""),
                ("AmbientCapabilities", ""),
                ("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6"),
                ("SystemCallFilter", "@system-service"),
                ("SystemCallFilter", "~@privileged @resources @mount @debug @cpu-emulation @obsolete"),
                ("SystemCallErrorNumber", "EPERM"),
                ("MemoryMax", "512M"),
                ("TasksMax", "64"),
                ("LimitCORE", "0"),
                ("ReadWritePaths", f"{policy.work_root} {AGENT_FOLDER}"),
            ],
        ),
        ("Install", [("WantedBy", "multi-user.target")]),
    )


def _render(*sections: Tuple[str, Lines]) -> str:
    head = "# Made by misrc from the site's policy. Changes here are undone by the next install.\n"
    parts = [f"[{name}]\n" + "".join(f"{key}={value}\n" for key, value in lines) for name, lines in sections]
    return head + "\n".join(parts)


def _render_socket() -> str:
    return _render(
        ("Unit", [("Description", "misrc: where the gate asks the runner")]),
        (
            "Socket",
            [
                ("ListenStream", RUNNER_SOCKET),
                ("SocketUser", "root"),
                ("SocketGroup", GATE_ACCOUNT),
                ("SocketMode", "0660"),
                ("DirectoryMode", "0755"),
            ],
        ),
        ("Install", [("WantedBy", "sockets.target")]),
    )


def _render_runner(policy: Policy, command: str) -> str:
    return _render(
        ("Unit", [("Description", "misrc: starts agreed programs and keeps the ledger")]),
        (
            "Service",
            [
                ("ExecStart", f"{command} runner"),
                *_COMMON,
                *_ROOT_SERVICE,
                ("RuntimeDirectory", "misrc/jobs"),
                ("RuntimeDirectoryMode", "0755"),
                ("RuntimeDirectoryPreserve", "yes"),
                ("ReadWritePaths", f"{policy.work_root} {LEDGER_FOLDER}"),
            ],
        ),
    )


def _render_supervisor(policy: Policy, command: str) -> str:
    return _render(
        (
            "Unit",
            [
                ("Description", "misrc: looks after job %i"),
                ("StartLimitIntervalSec", "60"),
                ("StartLimitBurst", "10"),
            ],
        ),
        (
            "Service",
            [
                ("Type", "exec"),
                ("ExecStart", f"{command} supervise %i"),
                ("Restart", "on-failure"),
                ("RestartSec", "1"),
                *_COMMON,
                *_ROOT_SERVICE,
                ("ReadWritePaths", f"{policy.work_root} {LEDGER_FOLDER} -{RUN_FOLDER}"),
            ],
        ),
    )


def _render_recover(command: str) -> str:
    return _render(
        ("Unit", [("Description", "misrc: goes on with the jobs that a reboot met"), ("After", "misrc-runner.socket")]),
        ("Service", [("Type", "oneshot"), ("ExecStart", f"{command} recover"), *_COMMON, *_ROOT_SERVICE]),
        ("Install", [("WantedBy", "multi-user.target")]),
    )


def _render_sweep(policy: Policy, command: str) -> str:
    return _render(
        ("Unit", [("Description", "misrc: deletes jobs whose time has come")]),
        (
            "Service",
            [
                ("Type", "oneshot"),
                ("ExecStart", f"{command} sweep"),
                *_COMMON,
                *_ROOT_SERVICE,
                ("ReadWritePaths", f"{policy.work_root} {LEDGER_FOLDER}"),
            ],
        ),
    )


def _render_timer() -> str:
    return _render(
        ("Unit", [("Description", "misrc: deletes jobs whose time has come, daily")]),
        ("Timer", [("OnCalendar", "daily"), ("RandomizedDelaySec", "1h"), ("Persistent", "yes")]),
        ("Install", [("WantedBy", "timers.target")]),
    )


def _render_job(policy: Policy, command: str, rule: ProgramRule) -> str:
    limits, place = policy.limits, f"{policy.work_root}/%i"
    bounds: Lines = [
        ("TasksMax", str(limits.processes)),
        ("RuntimeMaxSec", str(limits.run_seconds)),
        ("TimeoutStopSec", "5"),
        ("LimitCORE", "0"),
        ("LimitFSIZE", str(limits.size("job_bytes"))),
    ]
    if limits.memory is not None:
        # The second holds each process where the host has no memory controller, which systemd only warns of.
        memory = str(limits.size("memory"))
        bounds += [("MemoryMax", memory), ("MemorySwapMax", "0"), ("LimitDATA", memory)]
    network: Lines = [("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6")]
    if rule.network == "deny":
        network = [("PrivateNetwork", "yes"), ("IPAddressDeny", "any"), *network]
    if rule.profile == "hpc":
        network[-1] = ("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6 AF_NETLINK")
    return _render(
        ("Unit", [("Description", f"misrc job %i ({_kind(rule)})")]),
        (
            "Service",
            [
                ("Type", "exec"),
                ("User", JOB_ACCOUNT),
                ("Group", JOB_ACCOUNT),
                ("ExecStartPre", f"+{command} mark %i"),
                ("ExecStart", f"{command} keep %i"),
                ("WorkingDirectory", f"{place}/work"),
                ("KillMode", "control-group"),
                ("OOMPolicy", "kill"),
                *bounds,
                *_COMMON,
                *(_STRICT if rule.profile == "strict" else _HPC),
                ("CapabilityBoundingSet", ""),
                ("AmbientCapabilities", ""),
                *network,
                # Of the work root a job sees its own folders; the site's rules and keys it does not see at all.
                ("TemporaryFileSystem", f"{policy.work_root}:ro"),
                ("BindPaths", f"{place}/work {place}/log {place}/{GUARD}"),
                ("InaccessiblePaths", f"-/etc/misrc -/etc/ssh -{LEDGER_FOLDER} -{RUNNER_SOCKET}"),
            ],
        ),
    )
