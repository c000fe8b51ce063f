"""Chains that others put beside kube-proxy's, in the form in which they write them (IPv4).

Calico and Istio insert their jumps in front of what is there; so a first packet passes their
rules before it comes to KUBE-SERVICES.
"""

from __future__ import annotations

from collections.abc import Mapping

FRAGMENTS: Mapping[str, str] = {
    "antrea": """\
*nat
:ANTREA-POSTROUTING - [0:0]
:ANTREA-PREROUTING - [0:0]
-A PREROUTING -m comment --comment "Antrea: jump to Antrea prerouting rules" -j ANTREA-PREROUTING
-A POSTROUTING -m comment --comment "Antrea: jump to Antrea postrouting rules" -j ANTREA-POSTROUTING
-A ANTREA-POSTROUTING -s 10.64.1.0/24 -m comment --comment "Antrea: masquerade" -j MASQUERADE
COMMIT
""",
    "aws": """\
*nat
:AWS-SNAT-CHAIN-0 - [0:0]
-A POSTROUTING -m comment --comment "AWS SNAT CHAIN" -j AWS-SNAT-CHAIN-0
-A AWS-SNAT-CHAIN-0 -d 192.168.0.0/16 -m comment --comment "AWS SNAT CHAIN" -j RETURN
-A AWS-SNAT-CHAIN-0 -m addrtype ! --dst-type LOCAL -j SNAT --to-source 192.168.77.12
COMMIT
""",
    "calico": """\
*filter
:cali-FORWARD - [0:0]
:cali-INPUT - [0:0]
:cali-OUTPUT - [0:0]
:cali-from-wl-dispatch - [0:0]
:cali-fw-cali0ef24ba3d1b - [0:0]
:cali-to-wl-dispatch - [0:0]
:cali-tw-cali0ef24ba3d1b - [0:0]
-I INPUT -m comment --comment "cali:Cz_u1IQiXIMmKD4c" -j cali-INPUT
-I FORWARD -m comment --comment "cali:wUHhoiAYhphO9Mso" -j cali-FORWARD
-I OUTPUT -m comment --comment "cali:tVnHkvAo15HuiPy0" -j cali-OUTPUT
-A cali-FORWARD -i cali+ -m comment --comment "cali:8ZoYfO5HKXWbB3pk" -j cali-from-wl-dispatch
-A cali-FORWARD -o cali+ -m comment --comment "cali:jdEuaPBe14V2hutn" -j cali-to-wl-dispatch
-A cali-from-wl-dispatch -i cali0ef24ba3d1b -g cali-fw-cali0ef24ba3d1b
-A cali-from-wl-dispatch -m comment --comment "Unknown interface" -j DROP
-A cali-to-wl-dispatch -o cali0ef24ba3d1b -g cali-tw-cali0ef24ba3d1b
-A cali-to-wl-dispatch -m comment --comment "Unknown interface" -j DROP
-A cali-fw-cali0ef24ba3d1b -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A cali-fw-cali0ef24ba3d1b -m conntrack --ctstate INVALID -j DROP
-A cali-tw-cali0ef24ba3d1b -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
:cali-POSTROUTING - [0:0]
:cali-PREROUTING - [0:0]
:cali-nat-outgoing - [0:0]
-I PREROUTING -m comment --comment "cali:6gwbT8clXdHdC1b1" -j cali-PREROUTING
-I POSTROUTING -m comment --comment "cali:O3lYWMrLQYEMJtB5" -j cali-POSTROUTING
-A cali-POSTROUTING -m comment --comment "cali:Z-c7XtVd2Bq7s_hA" -j cali-nat-outgoing
-A cali-nat-outgoing -s 10.64.0.0/10 ! -d 10.64.0.0/10 -j MASQUERADE --random-fully
COMMIT
""",
    "cilium": """\
*filter
:CILIUM_FORWARD - [0:0]
:CILIUM_INPUT - [0:0]
-I INPUT -m comment --comment "cilium-feeder: CILIUM_INPUT" -j CILIUM_INPUT
-I FORWARD -m comment --comment "cilium-feeder: CILIUM_FORWARD" -j CILIUM_FORWARD
-A CILIUM_FORWARD -o cilium_host -m comment --comment "cilium: any->cluster" -j ACCEPT
-A CILIUM_FORWARD -i cilium_host -m comment --comment "cilium: cluster->any" -j ACCEPT
-A CILIUM_INPUT -m mark --mark 0x200/0xf00 -m comment --comment "cilium: ACCEPT" -j ACCEPT
COMMIT
""",
    "cni": """\
*nat
:CNI-DN-0b1cbe5b1e8fcdc3b6a2f - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
:CNI-HOSTPORT-MASQ - [0:0]
:CNI-HOSTPORT-SETMARK - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A POSTROUTING -m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ
-A CNI-HOSTPORT-DNAT -p tcp -m tcp --dport 8443 -j CNI-DN-0b1cbe5b1e8fcdc3b6a2f
-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
-A CNI-HOSTPORT-SETMARK -j MARK --set-xmark 0x2000/0x2000
-A CNI-DN-0b1cbe5b1e8fcdc3b6a2f -s 10.64.0.9/32 -p tcp -m tcp --dport 8443 -j CNI-HOSTPORT-SETMARK
-A CNI-DN-0b1cbe5b1e8fcdc3b6a2f -p tcp -m tcp --dport 8443 -j DNAT --to-destination 10.64.0.9:443
COMMIT
""",
    "docker": """\
*filter
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-I FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -j DOCKER
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
COMMIT
""",
    "flannel": """\
*filter
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.64.0.0/10 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d 10.64.0.0/10 -m comment --comment "flanneld forward" -j ACCEPT
COMMIT
*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s 10.64.0.0/10 -d 10.64.0.0/10 -j MASQUERADE --random-fully
COMMIT
""",
    "istio": """\
*nat
:ISTIO_INBOUND - [0:0]
:ISTIO_IN_REDIRECT - [0:0]
:ISTIO_OUTPUT - [0:0]
:ISTIO_REDIRECT - [0:0]
-I PREROUTING -p tcp -j ISTIO_INBOUND
-I OUTPUT -p tcp -j ISTIO_OUTPUT
-A ISTIO_INBOUND -p tcp -m tcp --dport 15008 -j RETURN
-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT
-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN
-A ISTIO_OUTPUT -j ISTIO_REDIRECT
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
COMMIT
""",
    "kube-router": """\
*filter
:KUBE-ROUTER-FORWARD - [0:0]
:KUBE-ROUTER-INPUT - [0:0]
-I INPUT -m comment --comment "kube-router netpol - 4IA2OSFRMVNDXBVV" -j KUBE-ROUTER-INPUT
-I FORWARD -m comment --comment "kube-router netpol - TEMCG2JMVZYKHFQ5" -j KUBE-ROUTER-FORWARD
-A KUBE-ROUTER-INPUT -d 10.96.0.0/12 -m comment --comment "allow traffic to cluster IP" -j RETURN
COMMIT
""",
    "kubelet": """\
*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*filter
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*nat
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
""",
    "other": """\
*filter
:f2b-sshd - [0:0]
:ufw-user-input - [0:0]
-A INPUT -p tcp -m tcp --dport 22 -j f2b-sshd
-A INPUT -j ufw-user-input
-A f2b-sshd -s 203.0.113.7/32 -j REJECT --reject-with icmp-port-unreachable
-A f2b-sshd -j RETURN
-A ufw-user-input -p tcp -m tcp --dport 443 -j ACCEPT
COMMIT
""",
    "ovn-kubernetes": """\
*nat
:OVN-KUBE-EXTERNALIP - [0:0]
:OVN-KUBE-NODEPORT - [0:0]
-A PREROUTING -j OVN-KUBE-EXTERNALIP
-A PREROUTING -j OVN-KUBE-NODEPORT
-A OVN-KUBE-NODEPORT -p tcp -m addrtype --dst-type LOCAL -m tcp --dport 31000 -j DNAT\
 --to-destination 10.96.1.0:80
COMMIT
""",
    "weave": """\
*filter
:WEAVE-EXPOSE - [0:0]
:WEAVE-NPC - [0:0]
-A FORWARD -o weave -m comment --comment "NOTE: this must go before '-j KUBE-FORWARD'" -j WEAVE-NPC
-A WEAVE-NPC -d 224.0.0.0/4 -j ACCEPT
-A WEAVE-NPC -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
""",
}
"""Input for `iptables-restore --noflush` by owner: some chains, their rules, the jumps to them."""


def foreign(*owners: str) -> str:
    """The fragments of these owners, of all without an argument, for `restore(…, flush=False)`."""
    return "".join(FRAGMENTS[owner] for owner in owners or FRAGMENTS)
