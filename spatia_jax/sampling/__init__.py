"""From what a person gives (files, words) to a rollout and what they get back (video, world, report)."""
