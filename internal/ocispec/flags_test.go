package ocispec

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/prototext"

	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

// text is a Spec from its words.
func text(t *testing.T, words string) *containersv1.Spec {
	t.Helper()
	s := &containersv1.Spec{}
	if err := prototext.Unmarshal([]byte(words), s); err != nil {
		t.Fatalf("%s: %v", words, err)
	}
	return s
}

func TestCapabilities(t *testing.T) {
	some := []string{"CAP_CHOWN", "CAP_NET_RAW", "CAP_SYS_ADMIN"}
	for _, tc := range []struct {
		spec string
		have []string
		want string // "+": with, "-": without, over the usual ones; else all of them
	}{
		{``, nil, "+ CAP_CHOWN"},
		{`cap_add: "net_admin"`, nil, "+ CAP_NET_ADMIN CAP_CHOWN"},
		{`cap_add: "CAP_NET_ADMIN" cap_drop: "NET_ADMIN"`, nil, "+ CAP_NET_ADMIN"},
		{`cap_drop: "CHOWN"`, nil, "- CAP_CHOWN CAP_SYS_ADMIN"},
		{`cap_drop: "all"`, nil, ""},
		{`cap_drop: "ALL" cap_add: "KILL" cap_add: "CAP_CHOWN"`, nil, "CAP_KILL CAP_CHOWN"},
		{`cap_add: "ALL"`, some, "CAP_CHOWN CAP_NET_RAW CAP_SYS_ADMIN"},
		{`cap_add: "ALL" cap_drop: "NET_RAW"`, some, "CAP_CHOWN CAP_SYS_ADMIN"},
		{`cap_add: "ALL"`, nil, strings.Join(every, " ")},
		{`privileged: true`, some, "CAP_CHOWN CAP_NET_RAW CAP_SYS_ADMIN"},
		{`cap_add: "SYS_TIME"`, some, "+ CAP_SYS_TIME"}, // named: the runtime says that it is not there
	} {
		got := Capabilities(text(t, tc.spec), tc.have)
		words := strings.Fields(tc.want)
		switch {
		case strings.HasPrefix(tc.want, "+"), strings.HasPrefix(tc.want, "-"):
			for _, c := range words[1:] {
				if slices.Contains(got, c) != (words[0] == "+") {
					t.Errorf("%s: %v, want %s", tc.spec, got, tc.want)
				}
			}
		case !slices.Equal(got, words):
			t.Errorf("%s: %v, want %v", tc.spec, got, words)
		}
	}
	if got := CapabilityNames(1<<21 | 1); !slices.Equal(got, []string{"CAP_CHOWN", "CAP_SYS_ADMIN"}) {
		t.Errorf("%v", got)
	}
	if len(every) != 41 || every[40] != "CAP_CHECKPOINT_RESTORE" {
		t.Errorf("%d capabilities", len(every))
	}
}

// TestConfig is what words of a Spec become in config.json.
func TestConfig(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	null := specs.LinuxDevice{Path: "/dev/x", Type: "c", Major: 1, Minor: 3}
	blocks := map[string]Number{"/dev/sda": {8, 0}}
	for _, tc := range []struct {
		spec    string
		options Options
		want    []string // parts of the JSON
		not     []string
	}{
		{
			`privileged: true`,
			Options{Have: []string{"CAP_CHOWN"}},
			[]string{`"bounding":["CAP_CHOWN"]`, `"devices":[{"allow":true,"access":"rwm"}]`, `"source":"sysfs","options":["nosuid","noexec","nodev"]}`, `"source":"cgroup","options":["nosuid","noexec","nodev","relatime"]}`},
			[]string{"maskedPaths", "readonlyPaths"},
		},
		{`privileged: true read_only: true`, Options{}, []string{`"source":"sysfs","options":["nosuid","noexec","nodev","ro"]}`}, nil},
		{`unmask: true`, Options{}, []string{`"source":"sysfs","options":["nosuid","noexec","nodev","ro"]}`}, []string{"maskedPaths", "readonlyPaths"}},
		{`apparmor: "mine"`, Options{}, []string{`"apparmorProfile":"mine"`}, nil},
		{`apparmor: "unconfined"`, Options{}, nil, []string{"apparmorProfile"}},
		{`seccomp { profile: "{}" }`, Options{Seccomp: &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}}, []string{`"seccomp":{"defaultAction":"SCMP_ACT_ALLOW"}`}, nil},
		{
			`devices { host_path: "/dev/null" path: "/dev/x" access: "r" } device_rules: "b 8:* rw" device_rules: "a *:* rwm"`,
			Options{Devices: []Device{{null, "r"}}},
			[]string{
				`"devices":[{"path":"/dev/x","type":"c","major":1,"minor":3}]`, `{"allow":true,"type":"c","major":1,"minor":3,"access":"r"},{"allow":true,"type":"b","major":8,"access":"rw"},{"allow":true,"type":"a","access":"rwm"}]`,
			},
			nil,
		},
		{`groups: "44" groups: "29"`, Options{}, []string{`"additionalGids":[44,29]`}, nil},
		{`oom_score_adj: 0`, Options{}, []string{`"oomScoreAdj":0`}, nil},
		{``, Options{}, nil, []string{"oomScoreAdj", "blockIO", `"cpu"`, `"memory"`, "pids", "additionalGids"}},
		{`resources { memory_bytes: 67108864 }`, Options{}, []string{`"memory":{"limit":67108864,"swap":134217728}`}, nil},
		{`resources { memory_bytes: 67108864 memory_swap_bytes: -1 }`, Options{}, []string{`"memory":{"limit":67108864,"swap":-1}`}, nil},
		{
			`resources { memory_bytes: 67108864 memory_swap_bytes: 67108864 memory_reservation_bytes: 33554432 memory_swappiness: 0 oom_kill_disable: true }`,
			Options{},
			[]string{`"memory":{"limit":67108864,"reservation":33554432,"swap":67108864,"swappiness":0,"disableOOMKiller":true}`},
			nil,
		},
		{`resources { cpu_shares: 512 cpu_period_usec: 50000 cpu_quota_usec: -1 cpuset_cpus: "0-1" cpuset_mems: "0" }`, Options{}, []string{`"cpu":{"shares":512,"quota":-1,"period":50000,"cpus":"0-1","mems":"0"}`}, nil},
		{
			`resources { blkio_weight: 300 blkio_weight_devices { path: "/dev/sda" weight: 20 } read_bps { path: "/dev/sda" rate: 1 } write_bps { path: "/dev/sda" rate: 2 } read_iops { path: "/dev/sda" rate: 3 } write_iops { path: "/dev/sda" rate: 4 } }`,
			Options{Blocks: blocks},
			[]string{
				`"weight":300`, `"weightDevice":[{"major":8,"minor":0,"weight":20}]`, `"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1}]`,
				`"throttleWriteBpsDevice":[{"major":8,"minor":0,"rate":2}]`, `"throttleReadIOPSDevice":[{"major":8,"minor":0,"rate":3}]`, `"throttleWriteIOPSDevice":[{"major":8,"minor":0,"rate":4}]`,
			},
			nil,
		},
		{`pid_namespace { mode: MODE_HOST }`, Options{}, nil, []string{`{"type":"pid"`}},
		{`pid_namespace { mode: MODE_CONTAINER container: "web" }`, Options{Joined: map[string]string{PID: "/proc/7/ns/pid"}}, []string{`{"type":"pid","path":"/proc/7/ns/pid"}`}, nil},
		{`pid_namespace { mode: MODE_CONTAINER container: "web" }`, Options{HostOf: []string{PID}}, nil, []string{`{"type":"pid"`}},
		{`ipc_namespace { mode: MODE_HOST }`, Options{}, []string{`"destination":"/dev/shm","type":"bind","source":"/dev/shm"`, `"type":"mqueue"`}, []string{`{"type":"ipc"`}},
		{
			`ipc_namespace { mode: MODE_CONTAINER container: "web" }`,
			Options{Joined: map[string]string{IPC: "/proc/7/ns/ipc"}, Shm: "/run/shm"},
			[]string{`{"type":"ipc","path":"/proc/7/ns/ipc"}`, `"destination":"/dev/shm","type":"bind","source":"/run/shm"`, `"type":"mqueue"`},
			nil,
		},
		{`ipc_namespace { mode: MODE_SHAREABLE }`, Options{Shm: "/run/shm"}, []string{`{"type":"ipc"}`, `"destination":"/dev/shm","type":"bind","source":"/run/shm"`}, nil},
		{`ipc_namespace { mode: MODE_NONE }`, Options{}, []string{`{"type":"ipc"}`, `"type":"mqueue"`}, []string{"/dev/shm"}},
		{`shm_bytes: 1048576`, Options{}, []string{`"destination":"/dev/shm","type":"tmpfs","source":"shm","options":["nosuid","noexec","nodev","mode=1777","size=1048576"]`}, nil},
		{``, Options{}, []string{`"size=67108864"`, `"hostname":"0123456789ab"`, `{"type":"cgroup"}`}, nil},
		{`uts_namespace { mode: MODE_HOST }`, Options{}, []string{`"HOSTNAME=` + host + `"`}, []string{`{"type":"uts"`, `"hostname"`, `"domainname"`}},
		{`uts_namespace { mode: MODE_CONTAINER container: "web" }`, Options{Joined: map[string]string{UTS: "/proc/7/ns/uts"}}, []string{`{"type":"uts","path":"/proc/7/ns/uts"}`, `"HOSTNAME=theirs"`}, []string{`"hostname"`}},
		{`network_mode: NETWORK_MODE_CONTAINER network_container: "web"`, Options{NetNS: "/run/netns/web"}, []string{`{"type":"network","path":"/run/netns/web"}`, `"hostname":"theirs"`}, []string{"sysctl"}},
		{`network_mode: NETWORK_MODE_CONTAINER network_container: "web"`, Options{HostOf: []string{Network}}, nil, []string{"sysctl", `"network"`}},
		{`cgroup_namespace { mode: MODE_HOST } user_namespace { mode: MODE_HOST }`, Options{}, nil, []string{`{"type":"cgroup"`, `{"type":"user"`}},
		{`cgroup_parent: "/batch/night"`, Options{Instance: "gantry"}, []string{`"cgroupsPath":"/batch/night/` + id + `"`}, nil},
		{`sysctls { name: "net.ipv4.ip_unprivileged_port_start" value: "7" } sysctls { name: "kernel/msgmax" value: "9" }`, Options{}, []string{`"kernel.msgmax":"9","net.ipv4.ip_unprivileged_port_start":"7","net.ipv4.ping_group_range"`}, nil},
	} {
		c := container(text(t, tc.spec))
		c.Shared = []*containersv1.Shared{{Namespace: UTS, Hostname: "theirs"}, {Namespace: Network, Hostname: "theirs"}}
		if err := Check(c.GetSpec(), 2); err != nil {
			t.Errorf("%s: %v", tc.spec, err)
		}
		s, err := Build(c, tc.options)
		if err != nil {
			t.Errorf("%s: %v", tc.spec, err)
			continue
		}
		raw, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range tc.want {
			if !strings.Contains(string(raw), part) {
				t.Errorf("%s: no %s in\n%s", tc.spec, part, raw)
			}
		}
		for _, part := range tc.not {
			if strings.Contains(string(raw), part) {
				t.Errorf("%s: %s in\n%s", tc.spec, part, raw)
			}
		}
	}
}

// TestConfined says who gets the daemon's filter.
func TestConfined(t *testing.T) {
	for words, want := range map[string]bool{
		``: true, `privileged: true`: false, `seccomp { unconfined: true }`: false, `seccomp { profile: "{}" }`: false, `cap_add: "ALL"`: true,
	} {
		if got := Confined(text(t, words)); got != want {
			t.Errorf("%s: %v", words, got)
		}
	}
}

// TestRefused is what contradicts itself, or is no word of the kernel's, and a part of what is said about it.
func TestRefused(t *testing.T) {
	for words, want := range map[string]string{
		`cap_add: "NET_ADMON"`:                                                       "no such capability",
		`cap_drop: ""`:                                                               "no such capability",
		`privileged: true cap_drop: "NET_RAW"`:                                       "add ALL and drop",
		`seccomp { unconfined: true profile: "{}" }`:                                 "take one of them away",
		`selinux: "type:x"`:                                                          "disable is known",
		`groups: "video"`:                                                            "its number",
		`oom_score_adj: 1001`:                                                        "-1000",
		`devices { host_path: "dev/x" }`:                                             "absolute",
		`devices { host_path: "/dev/x" path: "y" }`:                                  "absolute",
		`devices { host_path: "/dev/x" access: "rx" }`:                               "some of r, w and m",
		`devices { host_path: "/d" } devices { host_path: "/e" path: "/d" }`:         "two at /d",
		`devices { cdi: "a.b/c=d" path: "/dev/d" }`:                                  "its description says",
		`device_rules: "c 1:3"`:                                                      "c 189:* rwm",
		`device_rules: "x 1:3 r"`:                                                    "c 189:* rwm",
		`device_rules: "c 1:3 rr"`:                                                   "c 189:* rwm",
		`device_rules: "c 99999999999:3 r"`:                                          "no number of a device",
		`device_rules: "a 1:3 rwm"`:                                                  "a *:* rwm",
		`resources { memory_swap_bytes: 67108864 }`:                                  "give a memory limit",
		`resources { memory_bytes: 67108864 memory_swap_bytes: 1 }`:                  "less than the memory limit",
		`resources { memory_bytes: 67108864 memory_swap_bytes: -2 }`:                 "-1 for no limit",
		`resources { memory_reservation_bytes: 1 }`:                                  "at least 6 MiB",
		`resources { memory_bytes: 8388608 memory_reservation_bytes: 67108864 }`:     "above the memory limit",
		`resources { memory_swappiness: 101 }`:                                       "0 to 100",
		`resources { cpu_millis: 1000 cpu_quota_usec: 1000 }`:                        "take one of them away",
		`resources { cpu_quota_usec: 10 }`:                                           "at least 1000",
		`resources { cpu_period_usec: 10 }`:                                          "1000 to 1000000",
		`resources { cpu_shares: 1 }`:                                                "2 to 262144",
		`resources { cpuset_cpus: "0-" }`:                                            "write 0-2,7",
		`resources { cpuset_mems: "1-0" }`:                                           "write 0-2,7",
		`resources { cpuset_cpus: "0-99999999" }`:                                    "write 0-2,7",
		`resources { blkio_weight: 9 }`:                                              "10 to 1000",
		`resources { blkio_weight_devices { path: "/d" weight: 1001 } }`:             "10 to 1000",
		`resources { read_bps { path: "sda" rate: 1 } }`:                             "absolute",
		`pid_namespace { mode: MODE_SHAREABLE }`:                                     "cannot be shareable",
		`user_namespace { mode: MODE_CONTAINER container: "a" }`:                     "cannot be container",
		`pid_namespace { mode: MODE_CONTAINER }`:                                     "or neither",
		`pid_namespace { container: "a" }`:                                           "or neither",
		`network_container: "a"`:                                                     "or neither",
		`network_mode: NETWORK_MODE_CONTAINER`:                                       "or neither",
		`uts_namespace { mode: MODE_HOST } hostname: "a"`:                            "take one of them away",
		`uts_namespace { mode: MODE_HOST } domainname: "a"`:                          "take one of them away",
		`network_mode: NETWORK_MODE_CONTAINER network_container: "a" hostname: "b"`:  "that one's name",
		`network_mode: NETWORK_MODE_CONTAINER network_container: "a" dns: "1.1.1.1"`: "name them there",
		`pid_namespace { mode: MODE_HOST } init: true`:                               "process 1",
		`ipc_namespace { mode: MODE_HOST } shm_bytes: 4096`:                          "/dev/shm",
		`shm_bytes: -1`:                                       "negative",
		`cgroup_parent: "batch"`:                              "absolute path",
		`cgroup_parent: "/batch/../.."`:                       "absolute path",
		`cgroup_parent: "/"`:                                  "absolute path",
		`sysctls { name: "kernel.pid_max" value: "1" }`:       "it is the host's",
		`sysctls { name: "kernel.hostname" value: "1" }`:      "hostname instead",
		`sysctls { name: "net..x" value: "1" }`:               "no such parameter",
		`sysctls { name: "net.x" } sysctls { name: "net/x" }`: "given twice",
		`network_mode: NETWORK_MODE_HOST sysctls { name: "net.core.somaxconn" value: "1" }`:                             "for others",
		`network_mode: NETWORK_MODE_CONTAINER network_container: "a" sysctls { name: "net.core.somaxconn" value: "1" }`: "for others",
		`ipc_namespace { mode: MODE_HOST } sysctls { name: "kernel.msgmax" value: "1" }`:                                "for others",
	} {
		if err := Check(text(t, words), 2); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", words, err, want)
		}
	}
}

func TestSet(t *testing.T) {
	if got, err := Set("0-2,7"); err != nil || !slices.Equal(got, []int{0, 1, 2, 7}) {
		t.Errorf("%v, %v", got, err)
	}
}
