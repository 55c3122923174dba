package ocispec

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestChange is what a runtime is told when bounds change; both are the text of Resources.
func TestChange(t *testing.T) {
	blocks := map[string]Number{"/dev/sda": {8, 0}, "/dev/sdb": {8, 16}}
	for _, tc := range []struct{ from, to, want string }{
		{``, ``, `null`},
		{`memory_bytes: 67108864 pids: 5`, `memory_bytes: 67108864 pids: 5`, `null`},
		{``, `memory_bytes: 67108864`, `{"memory":{"limit":67108864,"swap":134217728}}`},
		{`memory_bytes: 67108864 cpu_millis: 500`, `memory_bytes: 33554432 cpu_millis: 500`, `{"memory":{"limit":33554432,"swap":67108864}}`},
		{`memory_bytes: 67108864`, ``, `{"memory":{"limit":9223372036854775807,"swap":9223372036854775807}}`},
		{`oom_kill_disable: true`, ``, `{"memory":{"disableOOMKiller":false}}`},
		{`cpu_millis: 500 cpu_shares: 5`, ``, `{"cpu":{"shares":1024,"quota":-1,"period":100000}}`},
		{`cpu_millis: 500`, `cpu_quota_usec: 2000`, `{"cpu":{"quota":2000,"period":100000}}`},
		{`cpuset_cpus: "0"`, `cpuset_cpus: "0-1"`, `{"cpu":{"cpus":"0-1"}}`},
		{`pids: 5`, ``, `{"pids":{"limit":-1}}`},
		{``, `pids: 7`, `{"pids":{"limit":7}}`},
		{
			`read_bps { path: "/dev/sda" rate: 1 } read_bps { path: "/dev/sdb" rate: 1 }`, `read_bps { path: "/dev/sda" rate: 2 }`,
			`{"blockIO":{"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":2},{"major":8,"minor":16,"rate":0}]}}`,
		},
		{`memory_reservation_bytes: 67108864`, ``, `the memory reservation; null`},
		{`memory_swappiness: 1`, `memory_bytes: 67108864`, `the swappiness; {"memory":{"limit":67108864,"swap":134217728}}`},
		{`cpuset_cpus: "0"`, `pids: 5`, `the set of processors; {"pids":{"limit":5}}`},
		{`cpuset_mems: "0"`, ``, `the set of memory nodes; null`},
		{`blkio_weight: 10`, ``, `the block I/O weight; null`},
		{`blkio_weight_devices { path: "/dev/sda" weight: 10 }`, ``, `the block I/O weight of a device; null`},
	} {
		from, to := text(t, `resources { `+tc.from+` }`).GetResources(), text(t, `resources { `+tc.to+` }`).GetResources()
		got, stuck := Change(Resources(from, blocks), Resources(to, blocks))
		raw, err := json.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		if have := strings.Join(append(stuck, string(raw)), "; "); have != tc.want {
			t.Errorf("%s to %s: %s, want %s", tc.from, tc.to, have, tc.want)
		}
	}
}
