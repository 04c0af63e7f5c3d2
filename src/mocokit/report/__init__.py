"""What a person looks at: pictures and pages made from a run."""
