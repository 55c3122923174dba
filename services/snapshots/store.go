package snapshots

import (
	"iter"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/internal/meta"
	snapshotsv1 "github.com/gantryd/gantry/proto/gantry/snapshots/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

var table = meta.NewTable("snapshots", func() *snapshotsv1.Snapshot { return &snapshotsv1.Snapshot{} })

// id is the key of the table.
func id(snapshotter, key string) string { return meta.Key(snapshotter, key) }

// records ranges over those of a driver, or with "" over all.
func records(tx *meta.Tx, snapshotter string) iter.Seq[*snapshotsv1.Snapshot] {
	all := table.All(tx)
	if snapshotter != "" {
		all = table.Under(tx, id(snapshotter, ""))
	}
	return func(yield func(*snapshotsv1.Snapshot) bool) {
		for _, r := range all {
			if !yield(r) {
				return
			}
		}
	}
}

// keep makes sure of the record of a committed snapshot. What is named by its content does not change, so one
// that is there is left alone.
func keep(tx *meta.Tx, snapshotter, name, parent string) error {
	k := id(snapshotter, name)
	if table.Has(tx, k) {
		return nil
	}
	return table.Put(tx, k, &snapshotsv1.Snapshot{
		Snapshotter: snapshotter, Key: name, Parent: parent, Kind: snapshotsv1.Kind_KIND_COMMITTED,
		Meta: &typesv1.Meta{Id: name, CreatedAt: timestamppb.Now()},
	})
}
