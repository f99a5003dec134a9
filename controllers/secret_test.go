package controllers

import (
	"strings"
	"testing"
)

func TestDecide(t *testing.T) {
	for name, tc := range map[string]struct {
		status, secret blobState
		lost           bool
		want           action
	}{
		"nothing anywhere: make a data key":                        {blobAbsent, blobAbsent, false, actionCreate},
		"no status and a Secret that opens: adopt it":              {blobAbsent, blobOpens, false, actionKeep},
		"no status and a Secret that does not open: leave it":      {blobAbsent, blobRefused, false, actionConflict},
		"no status and a Secret of another type: leave it":         {blobAbsent, blobForeign, false, actionConflict},
		"a status that opens and no Secret: write it again":        {blobOpens, blobAbsent, false, actionRecreate},
		"a status that opens and a Secret that opens: status wins": {blobOpens, blobOpens, false, actionKeep},
		"a status that opens and a spoilt Secret: repair it":       {blobOpens, blobRefused, false, actionKeep},
		"a status that opens and a foreign Secret: leave it":       {blobOpens, blobForeign, false, actionConflict},
		"another master key and no Secret: touch nothing":          {blobOfOtherKey, blobAbsent, false, actionChanged},
		"another master key and a Secret that opens":               {blobOfOtherKey, blobOpens, false, actionChanged},
		"another master key and a Secret that does not open":       {blobOfOtherKey, blobRefused, false, actionChanged},
		"another master key and a foreign Secret":                  {blobOfOtherKey, blobForeign, false, actionChanged},
		"a spoilt status and no Secret: never a new data key":      {blobRefused, blobAbsent, false, actionBroken},
		"a spoilt status and a Secret that opens: adopt it":        {blobRefused, blobOpens, false, actionKeep},
		"a spoilt status and a spoilt Secret":                      {blobRefused, blobRefused, false, actionBroken},
		"a generation that opens nowhere: touch nothing":           {blobOpens, blobOpens, true, actionBroken},
		"a generation that opens nowhere, and no Secret":           {blobOpens, blobAbsent, true, actionBroken},
		"no status, and a Secret of which a part opens":            {blobAbsent, blobOpens, true, actionBroken},
		"no status, and a Secret of which nothing opens":           {blobAbsent, blobRefused, true, actionConflict},
		"a generation that opens nowhere, of another key":          {blobOfOtherKey, blobAbsent, true, actionChanged},
		"a spoilt status and a foreign Secret":                     {blobRefused, blobForeign, false, actionBroken},
	} {
		t.Run(name, func(t *testing.T) {
			if got := decide(tc.status, tc.secret, tc.lost); got != tc.want {
				t.Errorf("got %d, want %d", got, tc.want)
			}
		})
	}
}

func TestTruncate(t *testing.T) {
	for name, tc := range map[string]struct{ in, want string }{
		"a short message stays":              {"short", "short"},
		"a message of the limit stays":       {strings.Repeat("a", maxMessage), strings.Repeat("a", maxMessage)},
		"a long message ends at a character": {strings.Repeat("é", maxMessage), strings.Repeat("é", (maxMessage-3)/2) + "..."},
	} {
		t.Run(name, func(t *testing.T) {
			if got := truncate(tc.in); got != tc.want {
				t.Errorf("got %d bytes, want %d", len(got), len(tc.want))
			}
		})
	}
}
