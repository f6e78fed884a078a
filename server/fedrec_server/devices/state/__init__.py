"""What front ends and jobs share: jobs, cohorts, stages and answers, in SQLite or PostgreSQL."""
