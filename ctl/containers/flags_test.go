package containers

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"github.com/gantryd/gantry/ctl/cli"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

// parsed is what the words of create become.
func parsed(args ...string) (*containersv1.Spec, error) {
	var f specFlags
	cmd := &cobra.Command{Use: "create"}
	f.add(cmd.Flags())
	if err := cmd.ParseFlags(args); err != nil {
		return nil, cli.Usagef("%w", err)
	}
	req, err := f.request(cmd, []string{"image"})
	return req.GetSpec(), err
}

// TestFlags is docker's words and what they mean, as the text of a Spec.
func TestFlags(t *testing.T) {
	t.Parallel()
	profile := filepath.Join(t.TempDir(), "a=b:c.json")
	if err := os.WriteFile(profile, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for words, want := range map[string]string{
		"--privileged":                                `privileged: true`,
		"--cap-add NET_ADMIN":                         `cap_add: "NET_ADMIN"`,
		"--cap-drop ALL --cap-add kill":               `cap_drop: "ALL" cap_add: "kill"`,
		"--security-opt no-new-privileges":            `no_new_privileges: true`,
		"--security-opt no-new-privileges:true":       `no_new_privileges: true`,
		"--security-opt no-new-privileges=false":      ``,
		"--security-opt seccomp=unconfined":           `seccomp { unconfined: true }`,
		"--security-opt seccomp:unconfined":           `seccomp { unconfined: true }`,
		"--security-opt seccomp=builtin":              ``,
		"--security-opt seccomp=" + profile:           `seccomp { profile: "{}" }`,
		"--security-opt apparmor=mine":                `apparmor: "mine"`,
		"--security-opt label=disable":                `selinux: "disable"`,
		"--security-opt label:type:svirt_t":           `selinux: "type:svirt_t"`,
		"--security-opt systempaths=unconfined":       `unmask: true`,
		"--device a.com/b=c":                          `devices { cdi: "a.com/b=c" }`,
		"--device /dev/fuse":                          `devices { host_path: "/dev/fuse" }`,
		"--device /dev/sda:/dev/xvda":                 `devices { host_path: "/dev/sda" path: "/dev/xvda" }`,
		"--device /dev/sda:r":                         `devices { host_path: "/dev/sda" access: "r" }`,
		"--device /dev/sda:/dev/xvda:rw":              `devices { host_path: "/dev/sda" path: "/dev/xvda" access: "rw" }`,
		"--group-add 44 --group-add 29":               `groups: "44" groups: "29"`,
		"--oom-score-adj -500":                        `oom_score_adj: -500`,
		"--oom-score-adj 0":                           `oom_score_adj: 0`,
		"--memory 64m --memory-swap -1":               `resources { memory_bytes: 67108864 memory_swap_bytes: -1 }`,
		"-m 64m --memory-swap 128m":                   `resources { memory_bytes: 67108864 memory_swap_bytes: 134217728 }`,
		"--memory-reservation 32m":                    `resources { memory_reservation_bytes: 33554432 }`,
		"--memory-swappiness 0":                       `resources { memory_swappiness: 0 }`,
		"--memory-swappiness -1":                      ``,
		"--oom-kill-disable":                          `resources { oom_kill_disable: true }`,
		"-c 512":                                      `resources { cpu_shares: 512 }`,
		"--cpu-period 50000 --cpu-quota 25000":        `resources { cpu_period_usec: 50000 cpu_quota_usec: 25000 }`,
		"--cpuset-cpus 0-1 --cpuset-mems 0":           `resources { cpuset_cpus: "0-1" cpuset_mems: "0" }`,
		"--blkio-weight 300":                          `resources { blkio_weight: 300 }`,
		"--blkio-weight-device /dev/sda:300":          `resources { blkio_weight_devices { path: "/dev/sda" weight: 300 } }`,
		"--device-read-bps /dev/sda:1mb":              `resources { read_bps { path: "/dev/sda" rate: 1048576 } }`,
		"--device-write-bps /dev/a:b:2kb":             `resources { write_bps { path: "/dev/a:b" rate: 2048 } }`,
		"--device-read-iops /dev/sda:10":              `resources { read_iops { path: "/dev/sda" rate: 10 } }`,
		"--device-write-iops /dev/sda:20":             `resources { write_iops { path: "/dev/sda" rate: 20 } }`,
		"--network container:web":                     `network_mode: NETWORK_MODE_CONTAINER network_container: "web"`,
		"--pid host":                                  `pid_namespace { mode: MODE_HOST }`,
		"--pid container:web":                         `pid_namespace { mode: MODE_CONTAINER container: "web" }`,
		"--pid private":                               `pid_namespace { }`,
		"--ipc shareable":                             `ipc_namespace { mode: MODE_SHAREABLE }`,
		"--ipc none":                                  `ipc_namespace { mode: MODE_NONE }`,
		"--ipc container:web":                         `ipc_namespace { mode: MODE_CONTAINER container: "web" }`,
		"--uts host --cgroupns host --userns host":    `uts_namespace { mode: MODE_HOST } cgroup_namespace { mode: MODE_HOST } user_namespace { mode: MODE_HOST }`,
		"--cgroup-parent batch/night/":                `cgroup_parent: "/batch/night"`,
		"--shm-size 1g":                               `shm_bytes: 1073741824`,
		"--sysctl net.core.somaxconn=7 --sysctl a.b=": `sysctls { name: "net.core.somaxconn" value: "7" } sysctls { name: "a.b" }`,
	} {
		got, err := parsed(strings.Fields(words)...)
		if err != nil {
			t.Errorf("%s: %v", words, err)
			continue
		}
		spec := &containersv1.Spec{}
		if err := prototext.Unmarshal([]byte(want), spec); err != nil {
			t.Fatalf("%s: %v", want, err)
		}
		spec.Image, spec.Args = "image", nil
		if spec.Resources == nil {
			spec.Resources = &containersv1.Resources{}
		}
		if !proto.Equal(got, spec) {
			t.Errorf("%s:\n got %v\nwant %v", words, got, spec)
		}
	}
	for gpus, want := range map[string]string{
		"all": "all", "2": "0 1", "device=1": "1", `"device=0,GPU-3a"`: "0 GPU-3a", "count=1,capabilities=gpu": "0", `"device=7",driver=nvidia`: "7", "capabilities=gpu": "0", "-1": "all",
	} {
		spec, err := parsed("--gpus", gpus)
		var names []string
		for _, d := range spec.GetDevices() {
			names = append(names, strings.TrimPrefix(d.GetCdi(), "nvidia.com/gpu="))
		}
		if err != nil || strings.Join(names, " ") != want {
			t.Errorf("--gpus %s: %v, %v", gpus, names, err)
		}
	}
	rule, err := parsed("--device-cgroup-rule", "c 189:* rwm")
	if err != nil || rule.GetDeviceRules()[0] != "c 189:* rwm" {
		t.Errorf("%v, %v", rule, err)
	}
}

// TestFlagsRefused is what is no word of docker's, and what the error says to write.
func TestFlagsRefused(t *testing.T) {
	t.Parallel()
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for words, want := range map[string]string{
		"--security-opt nothing":                   "are known",
		"--security-opt seccomp=":                  "seccomp=VALUE",
		"--security-opt seccomp=/no/such":          "no such file",
		"--security-opt seccomp=/tmp":              "must be a file",
		"--security-opt seccomp=" + empty:          "is empty",
		"--security-opt systempaths=all":           "systempaths=unconfined",
		"--security-opt no-new-privileges=perhaps": "no-new-privileges=false",
		"--device a=b":                             "vendor.com/class=name",
		"--gpus many":                              "no number of GPUs",
		"--gpus driver=amd":                        "--device vendor.com/class=name",
		"--gpus 1,device=0":                        "contradict",
		"--gpus colour=red":                        "is not known",
		"--device fuse":                            "no absolute path",
		"--device /dev/a:/dev/b:rwx":               "neither a path nor some of r, w and m",
		"--device /dev/a:b:rw":                     "no absolute path in the container",
		"--device /dev/a:":                         "neither a path",
		"--device /dev/a:/b:r:w":                   "too many colons",
		"--group-add video":                        "getent group video",
		"--oom-score-adj 1001":                     "-1000 to 1000",
		"--memory-swap much":                       "no size",
		"--memory-swap -2":                         "no size",
		"--memory-swappiness 101":                  "0 to 100",
		"--cpus 1 --cpu-quota 1000":                "take one of them away",
		"--cpu-shares -1":                          "invalid",
		"--blkio-weight-device /dev/sda":           "/dev/sda:200",
		"--blkio-weight-device sda:200":            "/dev/sda:200",
		"--blkio-weight-device /dev/sda:9":         "10 to 1000",
		"--device-read-bps /dev/sda:fast":          "/dev/sda:10mb",
		"--device-read-bps /dev/sda:-1":            "/dev/sda:10mb",
		"--device-read-iops /dev/sda:1k":           "/dev/sda:1000",
		"--pid web":                                "container:NAME",
		"--pid container:":                         "container:NAME",
		"--ipc public":                             "shareable",
		"--uts shareable":                          "private, host and container:NAME",
		"--cgroupns container:web":                 "private and host",
		"--userns auto":                            "host is known",
		"--shm-size 0":                             "no size",
		"--sysctl net.core.somaxconn":              "NAME=VALUE",
		"--network container:web -p 80":            "publish the port of that container",
	} {
		got, err := parsed(strings.Fields(words)...)
		if cli.ExitCode(err) != 2 || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v; want %q", words, got, err, want)
		}
	}
}

// TestHostConfig is what inspect shows of it, under docker's names.
func TestHostConfig(t *testing.T) {
	t.Parallel()
	spec, err := parsed("--privileged", "--cap-add", "SYS_TIME", "--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined",
		"--device", "/dev/fuse:/dev/f:r", "--gpus", "all", "--device-cgroup-rule", "c 1:3 r", "--group-add", "44", "--oom-score-adj", "5", "--ulimit", "core=-1",
		"--sysctl", "net.core.somaxconn=7", "--pid", "container:web", "--ipc", "host", "--uts", "host", "--cgroupns", "host", "--userns", "host",
		"--cgroup-parent", "/batch", "--tmpfs", "/run:size=1m", "-m", "64m", "-c", "5", "--cpuset-cpus", "0", "--blkio-weight", "10",
		"--device-read-bps", "/dev/sda:1mb", "--network", "container:web", "--memory-swappiness", "3")
	if err != nil {
		t.Fatal(err)
	}
	c := &containersv1.Container{Spec: spec, Shared: []*containersv1.Shared{{Namespace: "pid", Container: "abc"}, {Namespace: "network", Container: "abc"}}}
	c.Spec.Volumes[0].Kind = containersv1.VolumeMount_KIND_TMPFS
	raw, err := json.Marshal(hostConfig(c))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"Privileged":true`, `"CapAdd":["SYS_TIME"]`, `"CapDrop":[]`, `"SecurityOpt":["seccomp=unconfined","apparmor=unconfined"]`,
		`"Devices":[{"PathOnHost":"/dev/fuse","PathInContainer":"/dev/f","CgroupPermissions":"r"}]`, `"DeviceCgroupRules":["c 1:3 r"]`, `"DeviceRequests":[{"Driver":"cdi","DeviceIDs":["nvidia.com/gpu=all"]}]`,
		`"GroupAdd":["44"]`, `"OomScoreAdj":5`, `"Ulimits":[{"Name":"core","Hard":-1,"Soft":-1}]`, `"Sysctls":{"net.core.somaxconn":"7"}`,
		`"PidMode":"container:abc"`, `"IpcMode":"host"`, `"UTSMode":"host"`, `"CgroupnsMode":"host"`, `"UsernsMode":"host"`, `"CgroupParent":"/batch"`,
		`"Tmpfs":{"/run":"size=1m"}`, `"MaskedPaths":[]`, `"Memory":67108864,"MemorySwap":134217728`, `"MemorySwappiness":3`, `"CpuShares":5`,
		`"CpusetCpus":"0"`, `"BlkioWeight":10`, `"BlkioDeviceReadBps":[{"Path":"/dev/sda","Rate":1048576}]`, `"NetworkMode":"container:abc"`, `"ShmSize":67108864`,
	} {
		if !strings.Contains(string(raw), want) {
			t.Errorf("no %s in %s", want, raw)
		}
	}
}
