// Package insecure names the guards against breaking out of a container, so that test/escape can
// take each out and show that the attack it is for works then: a guard whose attack fails without it
// as well guards nothing, or the test attacks nothing.
//
// It is only in programs that were built with -tags insecure. In every other, a release among them,
// Without is a constant and the compiler removes what it would lead to. In one of those programs a
// guard is taken out by Take, or, from the start, by GANTRY_INSECURE, a list of names with commas.
package insecure

// Guard is the name of one.
type Guard string

// The guards, each with the hole that others had for want of it.
const (
	// Seal: a process that starts containers is not dumpable, and its executable is on a read-only mount
	// (CVE-2019-5736, CVE-2016-9962).
	Seal Guard = "seal"
	// Descriptors: a process keeps none but its own before the container can see it (CVE-2016-9962,
	// CVE-2024-21626).
	Descriptors Guard = "descriptors"
	// Workdir: a working directory is not reached through a descriptor, and lies inside (CVE-2024-21626).
	Workdir Guard = "workdir"
	// Null: what masks a file is the host's /dev/null, verified (CVE-2025-31133).
	Null Guard = "null"
	// Links: nothing is mounted on, masked or made read-only through a symbolic link (CVE-2021-30465,
	// CVE-2019-19921, CVE-2025-52565).
	Links Guard = "links"
	// Inside: the container's files are opened as if its root were everything there is (CVE-2018-15664,
	// CVE-2024-45310).
	Inside Guard = "inside"
	// Procfs: sysctls are written to a procfs of the runtime's own (CVE-2025-52881).
	Procfs Guard = "procfs"
	// OverProc: /proc is a procfs (CVE-2019-16884).
	OverProc Guard = "over-proc"
	// ProcLink: /proc and /sys are no links (CVE-2023-27561, CVE-2023-28642).
	ProcLink Guard = "proc-link"
	// OldRoot: the host's root is unmounted.
	OldRoot Guard = "old-root"
	// Below: a read-only bind mount is read-only as far as it reaches (CVE-2023-25809).
	Below Guard = "below"
	// Early: a joined process namespace is entered after everything of the host's was let go of (CVE-2016-9962).
	Early Guard = "early"
	// Unseen: where a container may trace processes, one that is added is confined before it is seen.
	Unseen Guard = "unseen"
	// Keyring: a process has a session keyring of its own.
	Keyring Guard = "keyring"
	// Ptmx: what a terminal is opened through is looked at before it is opened.
	Ptmx Guard = "ptmx"
	// Node: the mode of a device node is not set through a link.
	Node Guard = "node"
	// Number: a number is a user's id, whatever a user is called (CVE-2016-3697).
	Number Guard = "number"
	// Primary: a user's primary group is among its groups (CVE-2022-36109).
	Primary Guard = "primary"
	// Peer: a shim answers its own user only.
	Peer Guard = "peer"
	// Layer: a layer's names are resolved inside the layer.
	Layer Guard = "layer"
	// Cell: who unpacks a layer has nothing else.
	Cell Guard = "cell"
)
