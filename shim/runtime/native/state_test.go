package native

import (
	"encoding/json"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestStateJSON: what is written by hand is what encoding/json would write.
func TestStateJSON(t *testing.T) {
	t.Parallel()
	for _, s := range []specs.State{
		{},
		{Version: "1.3.0", ID: `a"b\c`, Status: specs.StateRunning, Pid: 7, Bundle: "/b\n<é>", Annotations: map[string]string{"z": "1", "a": "", `q"`: "\x01"}},
	} {
		raw, err := stateJSON(s)
		if err != nil {
			t.Fatal(err)
		}
		same(t, raw, s)
		p := specs.ContainerProcessState{Version: s.Version, Fds: []string{specs.SeccompFdName, "x"}, Pid: 3, Metadata: s.ID, State: s}
		if raw, err = processJSON(p); err != nil {
			t.Fatal(err)
		}
		same(t, raw, p)
	}
}

func same(t *testing.T, raw []byte, v any) {
	t.Helper()
	want, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if string(raw) != string(want) {
		t.Errorf("got  %s\nwant %s", raw, want)
	}
}
