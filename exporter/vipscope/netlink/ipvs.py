"""IPVS by socket option: one number, without a dump.

Format: linux/ip_vs.h. Only getsockopt is used: its options change nothing, and load no module.
"""

from __future__ import annotations

import errno
import socket
import struct

from vipscope.snapshot import AbsentError

IP_VS_SO_GET_INFO = 64 + 1024 + 64 + 1

_INFO = struct.Struct("=III")
"""struct ip_vs_getinfo: version, size of the connection table, services."""


def ipv4_services() -> int | None:
    """IPv4 virtual servers, those by firewall mark included; IPv6 ones are not counted here.

    None without NET_ADMIN. Raises AbsentError where IPVS is not in the kernel.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            answer = sock.getsockopt(socket.IPPROTO_IP, IP_VS_SO_GET_INFO, _INFO.size)
        except PermissionError:
            return None
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                raise
            raise AbsentError("the kernel has no IPVS") from None
    _, _, services = _INFO.unpack(answer)
    return int(services)
