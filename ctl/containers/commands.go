// Package containers is the container noun of the gantry command: one file a verb.
package containers

import (
	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/ctl/cli"
)

// Verbs returns the commands of the noun, in the order that help lists them. The top level
// takes some of them again, by name.
func Verbs(env *cli.Env) []*cobra.Command {
	return []*cobra.Command{
		newRunCommand(env),
		newCreateCommand(env),
		newStartCommand(env),
		newStopCommand(env),
		newRestartCommand(env),
		newKillCommand(env),
		newPauseCommand(env),
		newUnpauseCommand(env),
		newUpdateCommand(env),
		newWaitCommand(env),
		newRemoveCommand(env),
		newPruneCommand(env),
		newListCommand(env),
		newInspectCommand(env),
		newLogsCommand(env),
		newExecCommand(env),
		newAttachCommand(env),
		newPortCommand(env),
	}
}
