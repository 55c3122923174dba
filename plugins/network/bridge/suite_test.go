package bridge

import (
	"encoding/json"
	"testing"

	"github.com/gantryd/gantry/plugins"
	"github.com/gantryd/gantry/plugins/network"
	"github.com/gantryd/gantry/plugins/network/networktest"
)

func TestMain(m *testing.M) { networktest.Main(m) }

func newDriver(t testing.TB, state string) network.Driver {
	t.Helper()
	d := New()
	t.Cleanup(func() { _ = d.Close() })
	if err := d.Configure(t.Context(), plugins.Config{State: state, Options: json.RawMessage(`{"instance":"gantry-test","bridge":"gytest0"}`)}); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestSuite(t *testing.T) { networktest.Run(t, newDriver) }
