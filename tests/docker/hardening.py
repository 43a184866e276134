"""The Pod Security Standard 'restricted', and what the network lets out of a pod, read off rendered manifests."""

from tests.docker.manifests import Manifests, container, environment, of_kind, pod

USER = 10001  # of the image
TRACING = "OTEL_EXPORTER_OTLP_ENDPOINT"


def restricted(manifests: Manifests) -> list[str]:
    """Complaints about what the namespace's own label would refuse, and a little more."""
    own, spec = container(manifests), pod(manifests)
    inner, outer = own.get("securityContext", {}), spec.get("securityContext", {})
    namespaces = [item["metadata"]["labels"] for item in of_kind(manifests, "Namespace")]
    wanted = {
        "the namespace enforces restricted": [
            labels.get("pod-security.kubernetes.io/enforce") for labels in namespaces
        ]
        == ["restricted"],
        f"runs as {USER}, not as root": outer.get("runAsNonRoot") is True and outer.get("runAsUser") == USER,
        "the root file system is read-only": inner.get("readOnlyRootFilesystem") is True,
        "no privilege can be gained": inner.get("allowPrivilegeEscalation") is False,
        "all capabilities are dropped": inner.get("capabilities") == {"drop": ["ALL"]},
        "seccomp is RuntimeDefault": outer.get("seccompProfile") == {"type": "RuntimeDefault"},
        "no token of the API server": spec.get("automountServiceAccountToken") is False,
        "nothing of the host": not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(),
        "volumes are empty folders with a limit": all(
            "sizeLimit" in volume.get("emptyDir", {}) for volume in spec["volumes"]
        ),
        "Triton's cache can be written": any(
            environment(manifests).get("TRITON_CACHE_DIR", "").startswith(f"{mount['mountPath']}/")
            for mount in own["volumeMounts"]
        ),
    }
    return [f"not so: {name}" for name, holds in wanted.items() if not holds]


def egress(manifests: Manifests) -> list[str]:
    """Nothing may leave; with tracing, questions to DNS and spans to the collector."""
    (policy,) = of_kind(manifests, "NetworkPolicy")
    rules = policy["spec"].get("egress", [])
    open_ports = {port["port"] for rule in rules for port in rule.get("ports", [])}
    collector = environment(manifests).get(TRACING, "")
    wanted = {53, int(collector.rpartition(":")[2])} if collector else set()
    complaints = [] if open_ports == wanted else [f"ports {open_ports} are open to the outside, not {wanted}"]
    if not all(rule.get("to") and rule.get("ports") for rule in rules):
        complaints.append("a rule lets everything out")
    if set(policy["spec"].get("policyTypes", [])) != {"Ingress", "Egress"}:
        complaints.append("the policy does not hold both ways")
    return complaints
